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
from benchmarks import machine, memory
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Case, Peer
from torch import Tensor

import nerve_kernels as nk

MIN_ROUNDS, MAX_ROUNDS = 3, 50
MAX_COPIES = 256
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative errors between two ways to compute the same in one precision, results rounded to it included."""


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
    times: list[float] = field(default_factory=list)

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


def captured(call: Call) -> Call | None:
    """The call as a CUDA graph to replay, or None where it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
    except RuntimeError:  # something in it synchronises
        torch.cuda.synchronize()
        return None

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Contest:
    """All contenders of one case that can run here, and the reasons of those that cannot."""

    def __init__(self, case: Case, *, budget: float, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.case, self.budget, self.device, self.dtype = case, budget, device, dtype
        self.contenders: list[Contender] = []
        self.missing: dict[str, tuple[str, str]] = {}
        self._problems = [Problem(case.size, dtype=dtype, device=device)]
        self._expected: Tensor | None = None
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
                contender.times.append(milliseconds(contender.next_call(), self.device))

    def run(self) -> None:
        """All rounds, for who has no other timer."""
        for turn in range(self.rounds):
            self.ours.times.append(milliseconds(self.ours.next_call(), self.device))
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
                result = call()
            except nk.BackendUnavailableError as error:
                self.missing[backend] = ("ours", str(error).split("For these inputs")[0].strip())
                continue
            self._admit(Contender(backend, "ours", True, [call]), result)

    def _add_peer(self, peer: Peer) -> None:
        kind = "published algorithm" if peer.published else "peer"
        reason = self._why_left_out(peer)
        if reason is not None:
            self.missing[peer.name] = (kind, reason)
            return
        try:
            call = peer.prepare(self._problems[0])
            result = call()
        except RuntimeError as error:
            if self.device == "cpu":
                raise  # where all of them run
            # out of memory, or a library that does not take this dtype on this GPU
            self.missing[peer.name] = (kind, str(error).splitlines()[0])
            return
        self._admit(Contender(peer.name, kind, peer.same_result, [call], past_cache=peer.past_cache), result)

    def _why_left_out(self, peer: Peer) -> str | None:
        """Why a peer is left out, or None where it takes part."""
        missing, size = missing_modules(peer), self.case.size
        if missing:
            return f"not installed: {', '.join(missing)}"
        if self.device not in peer.devices:
            return f"runs on {', '.join(peer.devices)}"
        if peer.full_only and self.case.quick:
            return "takes long to prepare: only in a full run"
        if peer.too_long(size):
            return "left out at this size: takes too long or too much memory for its worth"
        wanted, available = peer.extra_bytes(size), memory.available_bytes(self.device)
        if available is not None and wanted > 0.8 * available:
            return f"needs about {wanted / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB available"
        return None

    def _admit(self, contender: Contender, result: Tensor) -> None:
        """Compare its first result, then measure memory and roughly the time of a second call."""
        call = contender.calls[0]
        if contender.same_result:
            if self._expected is None:
                self._expected = result.detach().clone()
            error = relative_error(result.detach(), self._expected)
            if not error <= max(self.case.operation.tolerance, TOLERANCES[self.dtype]):
                first = self.contenders[0].name if self.contenders else contender.name
                raise AssertionError(f"{self.case.name}: {contender.name} differs from {first} by {error:.3g}")
        del result
        contender.peak_bytes, contender.seconds = self._memory_and_seconds(call)
        if self.device == "cuda" and (graph := captured(call)) is not None:
            contender.calls[0], contender.in_graph = graph, True
        if contender.seconds < 0.1 * self.budget:  # the first touch of its memory counts for little in a longer one
            contender.seconds = 1e-3 * milliseconds(contender.calls[0], self.device)
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
        for contender in self.contenders:
            fewest = 1 if contender.seconds > self.budget else MIN_ROUNDS
            contender.rounds = max(fewest, min(MAX_ROUNDS, int(share / contender.seconds)))
        peers = {peer.name: peer for peer in self.case.operation.peers}
        for contender in self.contenders:
            for seed in range(1, self._copies(contender)):
                if seed == len(self._problems):
                    self._problems.append(Problem(self.case.size, seed=seed, dtype=self.dtype, device=self.device))
                contender.calls.append(self._call_on(contender, peers, self._problems[seed]))

    def _copies(self, contender: Contender) -> int:
        """Enough that the caches hold nothing of a copy when its turn comes again."""
        cache = machine.cache_bytes(self.device)
        # one that writes so much itself leaves nothing of its inputs in the cache
        empties_cache = contender.past_cache or (contender.peak_bytes or 0) > 2 * cache
        if not self.case.operation.cold or empties_cache:
            return 1
        needed = math.ceil(2 * cache / self.case.operation.work(self.case.size).bytes)
        return max(1, min(needed, contender.rounds, MAX_COPIES))

    def _call_on(self, contender: Contender, peers: dict[str, Peer], problem: Problem) -> Call:
        if contender.kind == "ours":
            backend = None if self.case.operation.backends == ("eager",) else contender.name
            call = self.case.operation.ours(problem, backend)
        else:
            call = peers[contender.name].prepare(problem)
        call()  # inputs are made when first touched, and pages when first written
        if contender.in_graph:
            return captured(call) or call
        return call
