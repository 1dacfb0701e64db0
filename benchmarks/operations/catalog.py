"""Every operation of the registry, and the cases of a full and of a quick run."""

from __future__ import annotations

from benchmarks.operations import attention, gradients, graphs, pixel_refiners, pixels, statistics, token_refiners, walk
from benchmarks.operations.registry import Case, Operation

OPERATIONS: tuple[Operation, ...] = (
    *attention.ALL,
    *statistics.ALL,
    *gradients.ALL,
    *walk.ALL,
    *graphs.ALL,
    *pixels.ALL,
    *token_refiners.ALL,
    *pixel_refiners.ALL,
)


def cases(*, quick: bool = False, only: str = "") -> list[Case]:
    """All cases, sweeps last; ``only`` keeps the operations whose name has it."""
    wanted = [operation for operation in OPERATIONS if only in operation.name]
    found = [
        Case(operation, size, quick=quick)
        for operation in wanted
        for size in (operation.quick if quick else operation.sizes)
    ]
    if not quick:
        for operation in wanted:
            found += [Case(operation, size, sweep) for sweep, sizes in operation.sweeps.items() for size in sizes]
    return found
