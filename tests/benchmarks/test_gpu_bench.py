"""What is measured on a GPU, tried on the CPU: the order, what a killed session leaves, graphs, bytes, peers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import gpu_bench, graphs, measure
from benchmarks.gpu_bench import CASES, Session, compiled_only, without_compilation
from benchmarks.measure import FAULT, Contest
from benchmarks.operations import attention, sizes, walk
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Case, Peer, PeerUnavailableError
from benchmarks.rows import rows_of
from benchmarks.tables import read_rows
from tests.benchmarks.test_measure import CEILINGS

FEW = replace(attention.ENTROPY, peers=(attention.ENTROPY.peers[0],), sweep_peers=(), backends=("eager", "cpp"))


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(gpu_bench, "measure_ceilings", lambda device, dtype: CEILINGS)
    cases = tuple((FEW, size, torch.float32) for size in (sizes.SD15_64, sizes.SD15_32))
    return Session("cpu", tmp_path / "rows.csv", math.inf, cases)


def test_every_case_is_measured_once_before_any_is_measured_well(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.run()
    measured = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("measured")]
    assert measured == ["measured once"] * 2 + ["measured well"] * 2
    assert {row["measured"] for row in read_rows(session.out)} == {"well"}
    assert session.remarks == []


def test_a_killed_session_leaves_what_it_measured(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, contests = Contest.run, []

    def killed_at_the_second(self: Contest) -> None:
        contests.append(self)
        if len(contests) == 2:
            raise KeyboardInterrupt
        whole(self)

    monkeypatch.setattr(Contest, "run", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    rows = read_rows(session.out)
    assert {row["implementation"] for row in rows if row["median_ms"]} >= {"eager", FEW.baseline}
    assert {row["measured"] for row in rows} == {"once"}


def test_what_time_is_left_for_is_named(session: Session) -> None:
    session.deadline = -math.inf
    session.run()
    assert len(session.remarks) == 4
    assert all(remark.startswith("no time was left for attention_entropy") for remark in session.remarks)


def test_a_case_that_fails_hides_no_other(session: Session) -> None:
    bad = replace(FEW, name="bad", ours=lambda p, backend: lambda: torch.zeros(1))
    session.cases = ((bad, sizes.SD15_64, torch.float32), *session.cases)
    session.run()
    assert {remark.split(",")[0] for remark in session.remarks} == {"FAILED bad | SD 1.5 at 512²"}
    assert len(session.rows) == 2


def test_on_a_gpu_one_that_fails_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that asks for the device itself answered as on a CPU."""
    monkeypatch.setattr(measure, "Problem", lambda *args, **options: Problem(*args, **{**options, "device": "cpu"}))
    monkeypatch.setattr(measure, "milliseconds", lambda call, device: (call(), 1.0)[1])
    monkeypatch.setattr(measure.memory, "peak_extra_bytes", lambda call, device: (call(), 0)[1])
    monkeypatch.setattr(measure.memory, "available_bytes", lambda device: None)
    monkeypatch.setattr(measure.machine, "cache_bytes", lambda device: 1)
    monkeypatch.setattr(measure.graphs, "captured", lambda calls, repeats, device: calls[0])

    def out_of_memory(problem: Problem) -> measure.Call:
        raise torch.OutOfMemoryError("CUDA out of memory")

    naive = FEW.peers[0]
    wrong = replace(naive, name="wrong", prepare=lambda p: lambda: 2 * naive.prepare(p)())
    greedy = Peer("greedy", out_of_memory)
    operation = replace(FEW, backends=("eager",), peers=(naive, wrong, greedy))
    contest = Contest(Case(operation, sizes.SMALL), budget=0.01, device="cuda", in_graphs=True)
    assert [contender.name for contender in contest.contenders] == ["eager", naive.name]
    assert contest.missing["wrong"][1].startswith(FAULT)
    assert contest.missing["greedy"][1] == "CUDA out of memory"


def test_one_timing_is_a_graph_of_as_many_calls_on_each_copy() -> None:
    contest = Contest(Case(FEW, sizes.SMALL), budget=0.05, in_graphs=True)
    for contender in contest.contenders:
        assert contender.in_graph
        assert len(contender.calls) == 1
        assert contender.calls_per_timing % contender.copies == 0
        assert 1 < contender.copies <= measure.MAX_COPIES_IN_GRAPH
    contest.run()
    row = rows_of(contest, CEILINGS)[0]
    assert row["copies"] == contest.ours.copies
    assert row["calls_per_timing"] == contest.ours.calls_per_timing


def test_the_time_of_a_graph_is_divided_by_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(Case(FEW, sizes.SMALL), budget=0.01, in_graphs=True)
    monkeypatch.setattr(measure, "milliseconds", lambda call, device: 6.0)
    contest.ours.calls_per_timing = 3
    contest.ours.time("cpu")
    assert contest.ours.times[-1] == 2.0


def test_calls_take_turns_within_a_graph() -> None:
    order: list[str] = []
    calls = [lambda name=name: (order.append(name), torch.zeros(1))[1] for name in "ab"]
    replay = graphs.captured(calls, 4, "cpu")
    assert replay is not None
    replay()
    assert order == ["a", "b", "a", "b"]
    assert graphs.calls_in_graph(1.0, 3) == 3
    assert graphs.calls_in_graph(graphs.GRAPH_SECONDS / 10, 4) == 12
    assert graphs.calls_in_graph(1e-9, 5) % 5 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_copies_are_counted_by_the_bytes_that_there_are(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(sizes.SMALL, dtype=dtype)
    assert problem.input_bytes() == 0
    attention.ENTROPY.ours(problem, "eager")()
    held = problem.q.nbytes + problem.k.nbytes
    assert problem.input_bytes() == held
    monkeypatch.setattr(measure.machine, "cache_bytes", lambda device: 4 * held)
    monkeypatch.setattr(measure.memory, "peak_extra_bytes", lambda call, device: (call(), 0)[1])
    contest = Contest(Case(FEW, sizes.SMALL), budget=1.0, dtype=dtype, in_graphs=True)
    assert contest.ours.copies == 8


def test_a_mixed_affinity_is_counted_once() -> None:
    problem = Problem(sizes.SMALL)
    held = problem.seeds.nbytes + problem.mixed.low_rank.u.nbytes + problem.mixed.local.values.nbytes
    assert problem.input_bytes() == held


GPU_PEERS = [
    (operation, peer)
    for operation in (attention.ENTROPY, attention.FUSE_MAPS, attention.MAP_ENTROPY, walk.WALK)
    for peer in operation.peers
    if peer.devices == ("cuda",)
]


@pytest.mark.parametrize(("operation", "peer"), GPU_PEERS, ids=lambda value: value.name)
def test_peers_of_gpus_are_tried_on_the_cpu_or_say_why_not(operation: attention.Operation, peer: Peer) -> None:
    problem = Problem(sizes.SMALL)
    if peer in (attention.CUDNN_ENTROPY, attention.EFFICIENT_ENTROPY):
        with pytest.raises(PeerUnavailableError, match=r"no GPU: .* runs on one"):
            peer.prepare(problem)()
        return
    result = peer.prepare(problem)()
    if peer.same_result:
        assert measure.relative_error(result, operation.reference(problem)) <= operation.tolerance
    elif "baddbmm" in peer.name:
        assert measure.relative_error(result, operation.reference(problem)) <= 2e-2


def test_attention_with_v_equal_to_k_yields_the_entropy() -> None:
    """By the identity that the peers rest on, at a size with a remainder, and with an lse that matters."""
    problem = Problem(sizes.SMALL)
    problem.q, problem.k = 3 * problem.q, 3 * problem.k
    result = attention.FLASH_ENTROPY.prepare(problem)()
    assert measure.relative_error(result, attention.ENTROPY.reference(problem)) < 1e-5


def test_only_what_torch_must_compile_is_left_for_last() -> None:
    names = {peer.name for operation, *_ in CASES for peer in without_compilation(operation).peers}
    assert not [name for name in names if name.startswith("torch.compile")]
    last = [found for operation, size, _ in CASES if (found := compiled_only(operation, size)) is not None]
    assert len(last) >= 3
    assert {peer.name.split(" of ")[0] for operation in last for peer in operation.peers} == {"torch.compile"}


def test_real_sizes_are_measured() -> None:
    layers = [size for operation, size, _ in CASES if operation is attention.ENTROPY]
    assert {40, 64, 72, 128} <= {size.head_size for size in layers if size.tokens == 4096}
    assert 20 in {size.heads for size in layers if size.tokens == 4096}
    walks = [size for operation, size, _ in CASES if operation is walk.WALK]
    assert 171 in {size.labels for size in walks}
    assert 1024 in {size.cells**2 for size in walks}


def test_a_table_can_be_printed_of_what_was_measured(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.run()
    gpu_bench.print_report(read_rows(session.out))
    printed = capsys.readouterr().out
    assert FEW.baseline in printed
    assert "bar, for an H100" in printed
