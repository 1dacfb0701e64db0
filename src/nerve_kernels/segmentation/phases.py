"""Phases of a segmentation: how long each took, and which backend each operator in it ran on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from nerve_kernels._operators import dispatch

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
    """

    name: str
    seconds: float
    operators: list[tuple[str, str]]
    failed: bool = False
    part: str = ""


_phases: ContextVar[list[Phase] | None] = ContextVar("_phases", default=None)


@contextmanager
def phase(name: str, part: str = "") -> Iterator[None]:
    """Around the body of a phase, or on its function; costs nothing where nobody records."""
    phases = _phases.get()
    if phases is None:
        yield
        return
    _wait_for_gpu()
    start = time.perf_counter()
    failed = True
    with dispatch.recording_choices() as choices:
        try:
            yield
            _wait_for_gpu()
            failed = False
        finally:
            phases.append(Phase(name, time.perf_counter() - start, list(dict.fromkeys(choices)), failed, part))


@contextmanager
def recording_phases() -> Iterator[list[Phase]]:
    """Collect the phases that run within the block.

    Example:
        >>> with recording_phases() as phases:
        ...     with phase("think"):
        ...         pass
        >>> [(one.name, one.operators, one.failed) for one in phases]
        [('think', [], False)]
    """
    phases: list[Phase] = []
    token = _phases.set(phases)
    try:
        yield phases
    finally:
        _phases.reset(token)


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
    return list(by_name.values())


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
