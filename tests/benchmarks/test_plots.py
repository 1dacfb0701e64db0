"""The plots and the table are made from any CSV of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Contest
from benchmarks.operations import sizes
from benchmarks.operations.registry import Case
from benchmarks.operations.walk import WALK
from benchmarks.plots import draw_all
from benchmarks.report import print_table
from benchmarks.rows import rows_of

CEILINGS = Ceilings(gflops=100, gbytes=10, gexps=1, source="invented")
FEW = replace(WALK, peers=WALK.peers[:1])


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """One case and a sweep of two sizes, at invented times."""
    larger = replace(sizes.SMALL, name="larger", grid=(16, 12))
    found = []
    for case in (Case(FEW, sizes.SMALL), Case(FEW, sizes.SMALL, "N"), Case(FEW, larger, "N")):
        contest = Contest(case, budget=0.01)
        for contender in contest.contenders:
            contender.times = [1.0, 2.0]
        contest.missing["nobody"] = ("peer", "not installed: nobody")
        found += [{name: str(value) for name, value in row.items()} for row in rows_of(contest, CEILINGS)]
    return found


def test_every_plot_is_drawn(rows: list[dict[str, str]], tmp_path: Path) -> None:
    written = draw_all(rows, tmp_path)
    assert [path.name for path in written] == ["cpu_sweeps.png", "cpu_roofline.png", "cpu_against_peers.png"]
    assert all(path.stat().st_size > 10_000 for path in written)


def test_a_run_without_sweeps_has_no_plot_of_them(rows: list[dict[str, str]], tmp_path: Path) -> None:
    written = draw_all([row for row in rows if not row["sweep"]], tmp_path)
    assert [path.name for path in written] == ["cpu_roofline.png", "cpu_against_peers.png"]


def test_the_table_names_the_missing_and_the_machine(
    rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(rows, CEILINGS)
    printed = capsys.readouterr().out
    assert "missing: nobody: not installed: nobody [random_walk]" in printed
    assert "ceilings: 100 GFLOP/s, 10 GB/s, 1.0 G exp/s (invented)" in printed
    assert "small" in printed
    assert "larger" not in printed  # a point of a sweep
