"""What a figure should reach, to be printed beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
