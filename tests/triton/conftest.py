"""What a kernel does not write is seen: outputs are full of NaN, or of a number nobody means, before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nerve_kernels.environment import interpreting_triton


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        made = make(*arguments, **options)
        return made.fill_(math.nan if made.is_floating_point() else -(2**31))

    return poisoned


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))


@pytest.fixture(autouse=True, scope="session")
def _language_replaced_once_a_launch() -> None:
    """The interpreter replaces triton.language at every call of one kernel by another, a third of all its time.

    What a launch has replaced stays so until it ends: once is enough for all kernels that see the same modules.
    """
    if not interpreting_triton():
        return
    from triton import language
    from triton.runtime import interpreter

    replace = interpreter._patch_lang
    launch: Any = None
    replaced: set[frozenset[int]] = set()

    def replace_once(kernel: Callable[..., Any]) -> Any:
        nonlocal launch
        seen = frozenset(
            id(value) for value in kernel.__globals__.values() if value is language or value is language.core
        )
        if launch is None or not launch._changes:  # empty once it has ended; Triton 3.6 returns nothing
            replaced.clear()
            launch = replace(kernel)
        elif seen not in replaced:
            replace(kernel)
        replaced.add(seen)
        return launch

    interpreter._patch_lang = replace_once
