"""Times all contenders of one case alternately, after their results were compared.

A contest first runs every contender once, compares what should be equal, takes the peak memory of a second run, and
fixes how often each will be timed. What is left to the caller is to go through the rounds: in each, our best backend
is timed once and the others in between, so that whatever the machine does meets all of them.
"""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import dataclass, field

import torch
from benchmarks import graphs, machine, memory
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Case, Peer, PeerUnavailableError
from torch import Tensor

import nerve_kernels as nk

MIN_ROUNDS, MAX_ROUNDS = 3, 50
MAX_COPIES, MAX_COPIES_IN_GRAPH = 256, 32
FAULT = "FAILED: "
"""How the reason begins why a contender is missing that ought to be there."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative errors between two ways to compute the same in one precision, results rounded to it included."""


class WrongResultError(AssertionError):
    """Two that should compute the same do not."""


@dataclass
class Contender:
    """One way to the result, its copies of the inputs, and its times in milliseconds."""

    name: str
    kind: str  # "ours", "peer" or "published algorithm"
    same_result: bool
    calls: list[Call]
    past_cache: bool = False
    seconds: float = 0.0
    rounds: int = MIN_ROUNDS
    peak_bytes: int | None = None
    in_graph: bool = False
    copies: int = 1  # of the inputs, in turn
    calls_per_timing: int = 1
    times: list[float] = field(default_factory=list)

    def time(self, device: str) -> None:
        """Time the next call, or the next replay of several."""
        self.times.append(milliseconds(self.next_call(), device) / self.calls_per_timing)

    def takes_part(self, turn: int, turns: int) -> bool:
        """Whether it runs in this round: its own rounds are spread evenly over all."""
        return (turn + 1) * self.rounds // turns > turn * self.rounds // turns

    def next_call(self) -> Call:
        """The call on the next copy of the inputs."""
        return self.calls[len(self.times) % len(self.calls)]


def milliseconds(call: Call, device: str) -> float:
    """One call; on a GPU between two events, with the device idle before and after."""
    if device == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def missing_modules(peer: Peer) -> list[str]:
    """What is not installed of what a peer needs."""
    return [name for name in peer.requires if importlib.util.find_spec(name) is None]


def relative_error(result: Tensor, expected: Tensor) -> float:
    """‖x − expected‖ / ‖expected‖; infinite where shapes differ."""
    if result.shape != expected.shape:
        return math.inf
    difference = (result.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-300))


class Contest:
    """All contenders of one case that can run here, and the reasons of those that cannot.

    With ``in_graphs`` every contender that can be is timed as replays of a graph of several calls; peers are then those
    of a GPU, be it that they are tried on a CPU. ``min_rounds`` is how often the slowest is timed.
    """

    def __init__(
        self,
        case: Case,
        *,
        budget: float,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        in_graphs: bool = False,
        min_rounds: int = MIN_ROUNDS,
    ) -> None:
        self.case, self.budget, self.device, self.dtype = case, budget, device, dtype
        self.in_graphs, self.min_rounds = in_graphs, min_rounds
        self.contenders: list[Contender] = []
        self.missing: dict[str, tuple[str, str]] = {}
        self._problems = [Problem(case.size, dtype=dtype, device=device)]
        self._expected: Tensor | None = None
        self._input_bytes: int | None = None
        self._add_ours()
        for peer in case.peers:
            self._add_peer(peer)
        self._plan()

    @property
    def ours(self) -> Contender:
        """The backend that ``backend=None`` would take, best first in the registry."""
        return self.contenders[0]

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        return max(contender.rounds for contender in self.contenders)

    def time_others(self, turn: int) -> None:
        """One call of each contender but ours."""
        for contender in self.contenders[1:]:
            if contender.takes_part(turn, self.rounds):
                contender.time(self.device)

    def run(self) -> None:
        """All rounds, for who has no other timer."""
        for turn in range(self.rounds):
            self.ours.time(self.device)
            self.time_others(turn)

    def _add_ours(self) -> None:
        backends = [name for name in self.case.operation.backends if name != "cuda" or self.device == "cuda"]
        for backend in backends:
            if self.case.sweep and self.contenders:
                break  # a curve of the best backend is enough
            if backend == "triton" and self.device == "cpu":
                self.missing[backend] = ("ours", "runs on a GPU (its interpreter is for tests)")
                continue
            named = None if self.case.operation.backends == ("eager",) else backend
            try:
                call = self.case.operation.ours(self._problems[0], named)
                self._admit(Contender(backend, "ours", True, [call]))
            except nk.BackendUnavailableError as error:
                self.missing[backend] = ("ours", str(error).split("For these inputs")[0].strip())
            except Exception as error:
                self._leave_out(backend, "ours", error)

    def _add_peer(self, peer: Peer) -> None:
        kind = "published algorithm" if peer.published else "peer"
        reason = self._why_left_out(peer)
        if reason is not None:
            self.missing[peer.name] = (kind, reason)
            return
        try:
            call = peer.prepare(self._problems[0])
            self._admit(Contender(peer.name, kind, peer.same_result, [call], past_cache=peer.past_cache))
        except PeerUnavailableError as error:
            self.missing[peer.name] = (kind, str(error))
        except Exception as error:
            self._leave_out(peer.name, kind, error)

    def _leave_out(self, name: str, kind: str, error: Exception) -> None:
        """On a GPU that one of them fails must not hide the others: out of memory, a dtype, a result that differs."""
        if self.device == "cpu":
            raise error
        said = " ".join(str(error).split())[:200]
        # libraries have their limits; ours has said before what it does not take, and no one may be wrong
        is_fault = kind == "ours" or isinstance(error, WrongResultError)
        self.missing[name] = (kind, f"{FAULT}{said}" if is_fault else said)

    def _why_left_out(self, peer: Peer) -> str | None:
        """Why a peer is left out, or None where it takes part."""
        missing, size = missing_modules(peer), self.case.size
        if missing:
            return f"not installed: {', '.join(missing)}"
        if ("cuda" if self.in_graphs else self.device) not in peer.devices:
            return f"runs on {', '.join(peer.devices)}"
        if peer.full_only and self.case.quick:
            return "takes long to prepare: only in a full run"
        if peer.too_long(size):
            return "left out at this size: takes too long or too much memory for its worth"
        wanted, available = peer.extra_bytes(size), memory.available_bytes(self.device)
        if available is not None and wanted > 0.8 * available:
            return f"needs about {wanted / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB available"
        return None

    def _admit(self, contender: Contender) -> None:
        """Compare its first result, then measure memory and roughly the time of a second call."""
        call = contender.calls[0]
        result = call()
        if contender.same_result:
            if self._expected is None:
                self._expected = result.detach().clone()
            error = relative_error(result.detach(), self._expected)
            if not error <= max(self.case.operation.tolerance, TOLERANCES[self.dtype]):
                first = self.contenders[0].name if self.contenders else contender.name
                raise WrongResultError(f"{self.case.name}: {contender.name} differs from {first} by {error:.3g}")
        del result
        contender.peak_bytes, contender.seconds = self._memory_and_seconds(call)
        if self.in_graphs and (graph := graphs.captured([call], 1, self.device)) is not None:
            call, contender.in_graph = graph, True
        if contender.seconds < 0.1 * self.budget:  # the first touch of its memory counts for little in a longer one
            contender.seconds = 1e-3 * milliseconds(call, self.device)
        self.contenders.append(contender)

    def _memory_and_seconds(self, call: Call) -> tuple[int | None, float]:
        """Of one call; that memory is given back and looked at around it is not in its time."""
        taken = []

        def timed() -> Tensor:
            start = time.perf_counter()
            result = call()
            taken.append(time.perf_counter() - start)
            return result

        peak = memory.peak_extra_bytes(timed, self.device)
        if not taken:  # memory cannot be measured here
            timed()
        return peak, taken[0]

    def _plan(self) -> None:
        """How often each is timed within the budget, and on how many copies of its inputs."""
        share = self.budget / len(self.contenders)
        peers = {peer.name: peer for peer in self.case.operation.peers}
        for contender in self.contenders:
            fewest = 1 if contender.seconds > self.budget else self.min_rounds
            contender.rounds = max(fewest, min(MAX_ROUNDS, int(share / contender.seconds)))
            # in a graph they are all of one timing
            most = MAX_COPIES_IN_GRAPH if contender.in_graph else min(contender.rounds, MAX_COPIES)
            contender.copies = self._copies(contender, most, peers)
            for seed in range(1, contender.copies):
                contender.calls.append(self._call_on(contender, peers, self._problem(seed)))
            if contender.in_graph:
                self._put_into_graph(contender, fewest, share)

    def _put_into_graph(self, contender: Contender, fewest: int, share: float) -> None:
        """One replay is one timing, of as many calls as make its start count for nothing."""
        repeats = graphs.calls_in_graph(contender.seconds, contender.copies)
        graph = graphs.captured(contender.calls, repeats, self.device)
        if graph is None:
            contender.in_graph = False
            return
        contender.calls, contender.calls_per_timing = [graph], repeats
        contender.rounds = max(fewest, min(MAX_ROUNDS, int(share / (repeats * contender.seconds))))

    def _problem(self, seed: int) -> Problem:
        while seed >= len(self._problems):
            problem = Problem(self.case.size, seed=len(self._problems), dtype=self.dtype, device=self.device)
            self._problems.append(problem)
        return self._problems[seed]

    def _copies(self, contender: Contender, most: int, peers: dict[str, Peer]) -> int:
        """Enough that the caches hold nothing of a copy when its turn comes again."""
        cache = machine.cache_bytes(self.device)
        # one that writes so much itself leaves nothing of its inputs in the cache
        empties_cache = contender.past_cache or (contender.peak_bytes or 0) > 2 * cache
        if not self.case.operation.cold or empties_cache or most == 1:
            return 1
        if self._input_bytes is None:  # what is made for the first contender, which is ours, alone
            self._call_on(contender, peers, self._problem(1))
            self._input_bytes = self._problem(1).input_bytes()
        return max(1, min(math.ceil(2 * cache / max(1, self._input_bytes)), most))

    def _call_on(self, contender: Contender, peers: dict[str, Peer], problem: Problem) -> Call:
        if contender.kind == "ours":
            backend = None if self.case.operation.backends == ("eager",) else contender.name
            call = self.case.operation.ours(problem, backend)
        else:
            call = peers[contender.name].prepare(problem)
        call()  # inputs are made when first touched, and pages when first written
        return call
