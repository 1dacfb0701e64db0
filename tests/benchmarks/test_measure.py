"""A contest compares before it times, alternates, and names whoever is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks import memory
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Contest
from benchmarks.operations import sizes
from benchmarks.operations.attention import ENTROPY
from benchmarks.operations.registry import Case, Operation, Peer
from benchmarks.rows import percentile, rows_of
from benchmarks.tables import read_rows, write_rows

NAIVE = ENTROPY.peers[0]
CEILINGS = Ceilings(gflops=100, gbytes=10, gexps=1, source="invented")


def contest(*peers: Peer, operation: Operation = ENTROPY) -> Contest:
    changed = replace(operation, peers=(NAIVE, *peers), sweep_peers=())
    return Contest(Case(changed, sizes.SMALL), budget=0.01)


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def recorded(name: str, peer: Peer) -> Peer:
        def prepare(problem):  # type: ignore[no-untyped-def]
            call = peer.prepare(problem)
            return lambda: (order.append(name), call())[1]

        return replace(peer, name=name, prepare=prepare)

    found = contest(recorded("a", NAIVE), recorded("b", NAIVE))
    for contender in found.contenders:
        contender.rounds = 4
    order.clear()
    found.run()
    assert order == ["a", "b"] * 4
    assert all(len(contender.times) == 4 for contender in found.contenders)


def test_rounds_of_a_slow_contender_are_spread_over_all() -> None:
    found = contest()
    slow = found.contenders[-1]
    slow.rounds = 3
    turns = [turn for turn in range(12) if slow.takes_part(turn, 12)]
    assert turns == [3, 7, 11]


def test_a_peer_with_another_result_stops_the_benchmark() -> None:
    wrong = replace(NAIVE, name="wrong", prepare=lambda p: lambda: 1.01 * NAIVE.prepare(p)())
    with pytest.raises(AssertionError, match=r"wrong differs from .* by 0\.01"):
        contest(wrong)


def test_what_only_answers_the_same_question_is_not_compared() -> None:
    other = replace(NAIVE, name="other", prepare=lambda p: lambda: torch.zeros(1), same_result=False)
    assert "other" in [contender.name for contender in contest(other).contenders]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"requires": ("no_such_module",)}, "not installed: no_such_module"),
        ({"devices": ("cuda",)}, "runs on cuda"),
        ({"too_long": lambda size: True}, "left out at this size"),
        ({"extra_bytes": lambda size: 2**60}, "GiB available"),
    ],
)
def test_a_missing_peer_is_named_with_the_reason(change: dict[str, object], reason: str) -> None:
    if "GiB" in reason and memory.available_bytes("cpu") is None:
        pytest.skip("this system does not say how much memory is available")
    found = contest(replace(NAIVE, name="missing", **change))
    assert reason in found.missing["missing"][1]
    rows = rows_of(timed(found), CEILINGS)
    row = next(row for row in rows if row["implementation"] == "missing")
    assert reason in row["missing"]
    assert row["median_ms"] == ""


def test_what_takes_long_to_prepare_is_left_to_a_full_run() -> None:
    slow = replace(NAIVE, name="slow", full_only=True)
    changed = replace(ENTROPY, peers=(NAIVE, slow), sweep_peers=())
    found = Contest(Case(changed, sizes.SMALL, quick=True), budget=0.01)
    assert found.missing["slow"][1] == "takes long to prepare: only in a full run"


def timed(found: Contest) -> Contest:
    """Invented times: 1, 2, 3 ms for every contender."""
    for contender in found.contenders:
        contender.times = [1.0, 2.0, 3.0]
    return found


def test_cold_inputs_are_rotated_past_the_cache() -> None:
    found = contest()
    for contender in found.contenders:
        assert len(contender.calls) == contender.rounds  # so small that the cache would hold all of them
    warm = contest(operation=replace(ENTROPY, cold=False))
    assert {len(contender.calls) for contender in warm.contenders} == {1}


def test_a_row_holds_rates_and_what_they_are_of_the_ceilings(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = timed(contest())
    write_rows(tmp_path / "rows.csv", rows_of(found, CEILINGS))
    row = read_rows(tmp_path / "rows.csv")[0]
    work = ENTROPY.work(sizes.SMALL)
    assert (row["median_ms"], row["p20_ms"], row["p80_ms"]) == ("2", "1.4", "2.6")
    assert float(row["gflops"]) == pytest.approx(work.operations / 2e-3 / 1e9, rel=1e-3)
    assert float(row["percent_of_fma_peak"]) == pytest.approx(float(row["gflops"]), rel=1e-3)
    assert float(row["percent_of_bandwidth"]) == pytest.approx(10 * float(row["gbytes_per_s"]), rel=1e-3)
    for column in ("machine", "threads", "torch", "date", "peak_extra_mib"):
        assert row[column] != "", column


def test_half_precision_moves_half_the_bytes() -> None:
    def bandwidth(dtype: torch.dtype) -> float:
        found = Contest(Case(replace(ENTROPY, peers=(NAIVE,), sweep_peers=()), sizes.SMALL), budget=0.01, dtype=dtype)
        return float(rows_of(timed(found), CEILINGS)[0]["gbytes_per_s"])

    assert bandwidth(torch.float16) == pytest.approx(bandwidth(torch.float32) / 2, rel=1e-3)


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2
    assert percentile([0.0, 10.0], 20) == 2
