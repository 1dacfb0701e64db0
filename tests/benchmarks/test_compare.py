"""The regression gate: ratios against the peer of the same run, never times of two runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.compare import compare
from benchmarks.tables import write_rows

Rows = list[dict[str, str]]


def rows(ours: float, peer: float, *, backend: str = "cpp", size: str = "large") -> Rows:
    common = {"operation": "walk", "size": size, "baseline": "loop", "machine": "m", "threads": "2", "torch": "2"}
    common |= {"sweep": ""}
    return [
        common | {"implementation": backend, "kind": "ours", "median_ms": str(ours)},
        common | {"implementation": "loop", "kind": "peer", "median_ms": str(peer)},
    ]


def run(folder: Path, old: Rows, new: Rows, *options: str) -> int:
    write_rows(folder / "old.csv", old)
    write_rows(folder / "new.csv", new)
    return main(["compare", str(folder / "old.csv"), str(folder / "new.csv"), *options])


def test_a_slower_machine_is_no_regression() -> None:
    found = compare(rows(1, 4), rows(3, 12))
    assert [change.loss for change in found.changes] == [1]


def test_a_loss_against_the_peer_is_one() -> None:
    found = compare(rows(1, 4), rows(2, 4))
    assert [change.loss for change in found.regressions(1.25)] == [2]
    assert not found.regressions(2.5)


def test_a_backend_that_is_measured_no_more_is_lost_and_a_size_that_was_not_run_is_not() -> None:
    assert compare(rows(1, 4), rows(1, 4, backend="eager")).lost == ["walk | large | cpp"]
    assert not compare(rows(1, 4) + rows(1, 4, size="small"), rows(1, 4)).lost


def test_points_of_a_curve_are_not_compared() -> None:
    curve = [row | {"sweep": "N"} for row in rows(9, 4)]
    assert [change.loss for change in compare(rows(1, 4) + curve, curve + rows(1, 4)).changes] == [1]


def test_another_machine_is_noted() -> None:
    new = [row | {"threads": "8"} for row in rows(1, 4)]
    assert compare(rows(1, 4), new).notes == ["threads: 2 then, 8 now"]


def test_a_missing_contender_has_no_time() -> None:
    missing = rows(1, 4)
    missing[1]["median_ms"] = ""
    assert not compare(rows(1, 4), missing).changes


@pytest.mark.parametrize(
    ("new", "options", "code"),
    [
        (rows(1.2, 4), [], 0),
        (rows(1.3, 4), [], 1),
        (rows(1.3, 4), ["--bound", "1.5"], 0),
        (rows(1, 4, backend="eager"), [], 1),
        (rows(1, 4, size="other"), [], 1),
    ],
)
def test_the_command_exits_by_the_bound(tmp_path: Path, new: Rows, options: list[str], code: int) -> None:
    assert run(tmp_path, rows(1, 4), new, *options) == code


def test_a_bound_below_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, rows(1, 4), rows(1, 4), "--bound", "0.5")
    assert "expected a factor ≥ 1, got 0.5" in capsys.readouterr().err
