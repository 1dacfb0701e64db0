"""What a figure should reach, to be printed beside what was measured.

``ON_CPU`` is for 2 cores with AVX-512: ratios of medians of one run hold on other machines more or less as well; memory
is beyond inputs and result. ``ON_H100`` is expected: nothing in it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.operations.attention import CUDNN_ENTROPY, ENTROPY, FLASH, FLASH_ENTROPY, FUSE_MAPS, SDPA
from benchmarks.operations.pixel_refiners import LPOSS_PLUS, PAMR, PAMR_MODULE, PAMR_SHIFTS, SCIPY
from benchmarks.operations.registry import Operation, Size
from benchmarks.operations.sizes import IMAGE_21, IMAGE_171, IMAGE_WINDOW_13, SD15_64, walk
from benchmarks.operations.statistics import A_PASS_EACH, AFTERWARDS, ONE_LOOK, PASSES
from benchmarks.operations.token_refiners import (
    AS_PUBLISHED,
    BY_SCIPY,
    CLIPER,
    CLIPER_SIZE,
    LPOSS,
    LPOSS_SIZE,
    REASSOCIATED,
)
from benchmarks.operations.walk import BADDBMM, BFLOAT16_WALK, COMPOSITE, DENSE, WALK

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Expectation:
    """A figure of one case, the bound it should keep, and a bound to dream of."""

    name: str
    operation: str
    size: str
    dtype: str
    figure: Callable[[Rows], float | None]
    wanted: float
    unit: str
    at_most: bool = False
    stretch: float | None = None

    def row(self, rows: Rows) -> tuple[str, str, str, str]:
        """(name, measured, wanted, verdict)."""
        sign = "≤" if self.at_most else "≥"
        wanted = f"{sign} {self.wanted:g} {self.unit}" + (f" (stretch {self.stretch:g})" if self.stretch else "")
        case = self.operation, self.size, self.dtype
        # points of a sweep have the same size, but were measured apart
        of_case = [row for row in rows if (row["operation"], row["size"], row["dtype"]) == case and not row["sweep"]]
        value = self.figure([row for row in of_case if row["median_ms"]])
        if value is None:
            return self.name, "not measured", wanted, "-"
        met = value <= self.wanted if self.at_most else value >= self.wanted
        return self.name, f"{value:.3g} {self.unit}", wanted, "met" if met else "MISSED"


def _best(rows: Rows) -> dict[str, Any] | None:
    ours = [row for row in rows if row["kind"] == "ours"]
    return min(ours, key=lambda row: float(row["median_ms"])) if ours else None


def times_faster_than(peer: str) -> Callable[[Rows], float | None]:
    """The peer's median over that of our fastest backend."""

    def figure(rows: Rows) -> float | None:
        ours, theirs = _best(rows), next((row for row in rows if row["implementation"] == peer), None)
        return None if ours is None or theirs is None else float(theirs["median_ms"]) / float(ours["median_ms"])

    return figure


def best(column: str, factor: float = 1.0) -> Callable[[Rows], float | None]:
    """A column of our fastest backend."""

    def figure(rows: Rows) -> float | None:
        ours = _best(rows)
        return None if ours is None or not ours[column] else factor * float(ours[column])

    return figure


def faster(
    operation: Operation, size: Size, peer: str, wanted: float, stretch: float | None = None, dtype: str = "float32"
) -> Expectation:
    """Our best backend, so many times as fast as a peer."""
    name, figure = f"{operation.name}, against {peer}", times_faster_than(peer)
    return Expectation(name, operation.name, size.name, dtype, figure, wanted, "× its speed", stretch=stretch)


def memory(operation: Operation, size: Size, wanted: float) -> Expectation:
    """Our best backend in so many MiB."""
    figure = best("peak_extra_mib")
    name = f"{operation.name}, extra memory"
    return Expectation(name, operation.name, size.name, "float32", figure, wanted, "MiB", at_most=True)


WALK_64 = walk(64, 21)
ON_CPU = (
    faster(ENTROPY, SD15_64, ENTROPY.baseline, 10),
    faster(ENTROPY, SD15_64, SDPA.name, 1.5, stretch=2.5),
    memory(ENTROPY, SD15_64, 16),
    faster(A_PASS_EACH, SD15_64, A_PASS_EACH.baseline, 8, stretch=14),
    memory(A_PASS_EACH, SD15_64, 64),
    faster(ONE_LOOK, SD15_64, ONE_LOOK.baseline, 16, stretch=18),
    faster(ONE_LOOK, SD15_64, PASSES.name, 1.75, stretch=2),
    memory(ONE_LOOK, SD15_64, 64),
    faster(AFTERWARDS, SD15_64, PASSES.name, 10),
    faster(WALK, WALK_64, DENSE, 25),
    faster(WALK, WALK_64, COMPOSITE, 2.2),
    faster(WALK, walk(64, 171), DENSE, 15),
    faster(WALK, walk(64, 171), COMPOSITE, 2.1),
    faster(WALK, walk(128, 150, 32), COMPOSITE, 2.4),
    faster(WALK, walk(256, 19, 32), COMPOSITE, 2.8),
    faster(BFLOAT16_WALK, walk(128, 150, 32), BFLOAT16_WALK.baseline, 1),
    faster(CLIPER, CLIPER_SIZE, AS_PUBLISHED, 20),
    faster(CLIPER, CLIPER_SIZE, REASSOCIATED, 4),
    faster(LPOSS, LPOSS_SIZE, BY_SCIPY, 5),
    faster(PAMR, IMAGE_21, PAMR_MODULE, 60),
    faster(PAMR, IMAGE_21, PAMR_SHIFTS, 4),
    memory(PAMR, IMAGE_21, 324),  # a tenth of the module's
    memory(PAMR, IMAGE_171, 1430),
    faster(LPOSS_PLUS, IMAGE_WINDOW_13, SCIPY, 15, stretch=20),
)
ON_H100 = (
    faster(ENTROPY, SD15_64, FLASH_ENTROPY.name, 1.5, dtype="float16"),
    faster(ENTROPY, SD15_64, CUDNN_ENTROPY.name, 1, dtype="float16"),
    faster(ENTROPY, SD15_64, FLASH.name, 1, dtype="float16"),
    Expectation(
        FUSE_MAPS.name,
        FUSE_MAPS.name,
        SD15_64.name,
        "float16",
        best("percent_of_bandwidth"),
        85,
        "% of copy bandwidth",
    ),
    Expectation(
        "random_walk, 20 steps",
        WALK.name,
        WALK_64.name,
        "float32",
        best("median_ms", 1e3),
        100,
        "µs",
        at_most=True,
        stretch=60,
    ),
    faster(WALK, WALK_64, BADDBMM.format("float32"), 8),
)
