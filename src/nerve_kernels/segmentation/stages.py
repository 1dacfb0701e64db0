"""Stages of a segmentation: how long each took, and which backend each operator in it ran on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from nerve_kernels._operators import dispatch

READ = "read the picture"
CLIP_PICTURE = "CLIP, picture"
CLIP_WORDS = "CLIP, words"
DIFFUSION = "Stable Diffusion"
AFFINITY = "affinity"
SEEDS = "seeds"
WALK = "random walk"
PIXELS = "labels of pixels"
WRITE = "write"


@dataclass
class Stage:
    """One stage of one picture.

    Args:
        name: one of the names above.
        seconds: wall time; a GPU is waited for.
        operators: (operator, backend) pairs in the order in which they first ran.
        failed: whether an exception ended it.
    """

    name: str
    seconds: float
    operators: list[tuple[str, str]]
    failed: bool = False


_stages: ContextVar[list[Stage] | None] = ContextVar("_stages", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Around the body of a stage, or on its function; costs nothing where nobody records."""
    stages = _stages.get()
    if stages is None:
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
            stages.append(Stage(name, time.perf_counter() - start, list(dict.fromkeys(choices)), failed))


@contextmanager
def recording_stages() -> Iterator[list[Stage]]:
    """Collect the stages that run within the block.

    Example:
        >>> with recording_stages() as stages:
        ...     with stage("think"):
        ...         pass
        >>> [(one.name, one.operators, one.failed) for one in stages]
        [('think', [], False)]
    """
    stages: list[Stage] = []
    token = _stages.set(stages)
    try:
        yield stages
    finally:
        _stages.reset(token)


def summed(stages: list[Stage]) -> list[Stage]:
    """Stages of the same name as one, in the order of their first run.

    Example:
        >>> [(one.name, one.seconds) for one in summed([Stage("a", 1, []), Stage("b", 2, []), Stage("a", 3, [])])]
        [('a', 4), ('b', 2)]
    """
    by_name: dict[str, Stage] = {}
    for one in stages:
        whole = by_name.setdefault(one.name, Stage(one.name, 0, []))
        whole.seconds += one.seconds
        whole.operators = list(dict.fromkeys([*whole.operators, *one.operators]))
        whole.failed |= one.failed
    return list(by_name.values())


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
