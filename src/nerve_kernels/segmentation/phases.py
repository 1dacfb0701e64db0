"""Phases of a segmentation: how long each took, and which backend each operator in it ran on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from nerve_kernels._operators import dispatch
from nerve_kernels._peak_memory import PeakMemory

READ = "read the image"
CLIP_IMAGE = "CLIP, image"
CLIP_WORDS = "CLIP, words"
DIFFUSION = "Stable Diffusion"
AFFINITY = "affinity"
SEEDS = "seeds"
WALK = "random walk"
REFINE = "refine pixels"
PIXELS = "labels of pixels"
WRITE = "write"


@dataclass
class Phase:
    """One phase of one image.

    Args:
        name: one of the names above.
        seconds: wall time; a GPU is waited for.
        operators: (operator, backend) pairs in the order in which they first ran.
        failed: whether an exception ended it.
        part: which part of it, where it has several that are computed and kept by themselves.
        peak_bytes: memory it took at its highest beyond what was there before, where that was asked for.
    """

    name: str
    seconds: float
    operators: list[tuple[str, str]]
    failed: bool = False
    part: str = ""
    peak_bytes: int | None = None


# the phases so far, and the device whose memory is measured
_recording: ContextVar[tuple[list[Phase], str | None] | None] = ContextVar("_recording", default=None)


@contextmanager
def phase(name: str, part: str = "") -> Iterator[None]:
    """Around the body of a phase, or on its function; costs nothing where nobody records."""
    recording = _recording.get()
    if recording is None:
        yield
        return
    phases, device = recording
    peak = None if device is None else PeakMemory(device)
    found = Phase(name, 0.0, [], failed=True, part=part)
    phases.append(found)
    with peak or nullcontext(), dispatch.recording_choices() as choices:
        _wait_for_gpu()
        start = time.perf_counter()
        try:
            yield
            _wait_for_gpu()
            found.failed = False
        finally:
            found.seconds = time.perf_counter() - start
            found.operators = list(dict.fromkeys(choices))
    found.peak_bytes = None if peak is None else peak.bytes


@contextmanager
def recording_phases(memory_of: str | None = None) -> Iterator[list[Phase]]:
    """Collect the phases that run within the block, which are not within each other.

    Args:
        memory_of: "cpu" or "cuda": also measure how much of its memory each takes.

    Example:
        >>> with recording_phases() as phases:
        ...     with phase("think"):
        ...         pass
        >>> [(one.name, one.operators, one.failed) for one in phases]
        [('think', [], False)]
    """
    phases: list[Phase] = []
    token = _recording.set((phases, memory_of))
    try:
        yield phases
    finally:
        _recording.reset(token)


def summed(phases: list[Phase]) -> list[Phase]:
    """Phases of the same name as one, in the order of their first run.

    Example:
        >>> [(one.name, one.seconds) for one in summed([Phase("a", 1, []), Phase("b", 2, []), Phase("a", 3, [])])]
        [('a', 4), ('b', 2)]
    """
    by_name: dict[str, Phase] = {}
    for one in phases:
        whole = by_name.setdefault(one.name, Phase(one.name, 0, []))
        whole.seconds += one.seconds
        whole.operators = list(dict.fromkeys([*whole.operators, *one.operators]))
        whole.failed |= one.failed
        if one.peak_bytes is not None:
            whole.peak_bytes = max(one.peak_bytes, whole.peak_bytes or 0)
    return list(by_name.values())


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
