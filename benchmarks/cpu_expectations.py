"""What is expected of a 2-core processor with AVX-512, to be printed beside what was measured.

Ratios of medians of one run, so that they hold on other machines more or less as well; memory is beyond inputs and
result.
"""

from __future__ import annotations

from benchmarks.expectations import Expectation, best, times_faster_than
from benchmarks.operations_attention import BOTH, ENTROPY, SDPA
from benchmarks.operations_walk import BFLOAT16_WALK, COMPOSITE, DENSE, WALK
from benchmarks.registry import Operation, Size
from benchmarks.sizes import SD15_64, walk

TIMES = "× its speed"


def faster(operation: Operation, size: Size, peer: str, wanted: float, stretch: float | None = None) -> Expectation:
    """Our best backend, so many times as fast as a peer."""
    name = f"{operation.name}, against {peer}"
    return Expectation(
        name, operation.name, size.name, "float32", times_faster_than(peer), wanted, TIMES, stretch=stretch
    )


def memory(operation: Operation, size: Size, wanted: float) -> Expectation:
    """Our best backend in so many MiB."""
    figure = best("peak_extra_mib")
    name = f"{operation.name}, extra memory"
    return Expectation(name, operation.name, size.name, "float32", figure, wanted, "MiB", at_most=True)


EXPECTATIONS = (
    faster(ENTROPY, SD15_64, ENTROPY.baseline, 10),
    faster(ENTROPY, SD15_64, SDPA.name, 1.5, stretch=2.5),
    memory(ENTROPY, SD15_64, 16),
    faster(BOTH, SD15_64, BOTH.baseline, 8, stretch=14),
    memory(BOTH, SD15_64, 64),
    faster(WALK, walk(64, 21), DENSE, 25),
    faster(WALK, walk(64, 21), COMPOSITE, 2.2),
    faster(WALK, walk(64, 171), DENSE, 15),
    faster(WALK, walk(64, 171), COMPOSITE, 2.1),
    faster(WALK, walk(128, 150, 32), COMPOSITE, 2.4),
    faster(WALK, walk(256, 19, 32), COMPOSITE, 2.8),
    faster(BFLOAT16_WALK, walk(128, 150, 32), BFLOAT16_WALK.baseline, 1),
)
