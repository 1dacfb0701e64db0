"""Several calls captured as one CUDA graph, so that what it costs to launch one of them is in nobody's time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from benchmarks.operations.registry import Call
from torch import Tensor

GRAPH_SECONDS = 2e-3
"""How long one replay should take at least: a launch takes 10 µs, a tick of an event's clock 0.5 µs."""
MAX_CALLS = 128


def calls_in_graph(seconds: float, copies: int) -> int:
    """How many calls of so many seconds one graph holds: as often on each copy of the inputs."""
    wanted = min(MAX_CALLS, math.ceil(GRAPH_SECONDS / max(seconds, 1e-9)))
    return copies * max(1, math.ceil(wanted / copies))


def captured(calls: Sequence[Call], repeats: int, device: str) -> Call | None:
    """``repeats`` calls in turn, as a CUDA graph to replay; None where they cannot be captured. On a CPU a loop."""
    turns = [calls[turn % len(calls)] for turn in range(repeats)]

    def in_turn() -> Tensor:
        for call in turns[:-1]:
            call()
        return turns[-1]()

    if device == "cpu":
        return in_turn
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = in_turn()
    except RuntimeError:  # something in it synchronises
        torch.cuda.synchronize()
        return None

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
