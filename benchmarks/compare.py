"""The regression gate: ``python -m benchmarks compare OLD.csv NEW.csv``.

Machines and their moods differ, so no time is compared with a time of another run. What is compared is how many times
faster ours is than its baseline peer *of the same run*, in the old file and in the new one. It fails where that ratio
fell by more than the bound, or where a case or a backend that was measured is measured no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_BOUND = 1.25

Row = dict[str, str]
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """How many times faster than the baseline one of our backends was, and is."""

    operation: str
    size: str
    backend: str
    baseline: str
    old: float
    new: float

    @property
    def loss(self) -> float:
        """Above 1 it became slower against its baseline, below 1 faster."""
        return self.old / self.new


@dataclass(frozen=True)
class Comparison:
    """Every change, and what can no longer be compared."""

    changes: list[Change]
    lost: list[str]
    notes: list[str]

    def regressions(self, bound: float) -> list[Change]:
        """Changes past the bound, worst first."""
        return sorted((c for c in self.changes if c.loss > bound), key=lambda c: c.loss, reverse=True)


def speedups(rows: Sequence[Row]) -> dict[Key, float]:
    """(operation, size, backend) to the median of the baseline over ours."""
    # the points of a curve were timed briefly, and some of them are cases too
    timed = [row for row in rows if row["median_ms"] and not row["sweep"]]
    peers = {(row["operation"], row["size"], row["implementation"]): float(row["median_ms"]) for row in timed}
    found = {}
    for row in timed:
        baseline = peers.get((row["operation"], row["size"], row["baseline"]))
        if row["kind"] == "ours" and baseline is not None:
            found[row["operation"], row["size"], row["implementation"]] = baseline / float(row["median_ms"])
    return found


def compare(old: Sequence[Row], new: Sequence[Row]) -> Comparison:
    """Two runs, each against itself."""
    before, after = speedups(old), speedups(new)
    baselines = {(row["operation"], row["size"]): row["baseline"] for row in new}
    measured = {(row["operation"], row["size"]) for row in new}
    changes = [Change(*key, baselines[key[:2]], before[key], after[key]) for key in before if key in after]
    # a quick run measures fewer sizes than a full one; a size that was not run is not lost
    lost = [" | ".join(key) for key in before if key not in after and key[:2] in measured]
    notes = []
    for column in ("machine", "threads", "torch"):
        then, now = ({row[column] for row in rows} for rows in (old, new))
        if then != now:
            notes.append(f"{column}: {', '.join(sorted(then))} then, {', '.join(sorted(now))} now")
    return Comparison(changes, lost, notes)
