"""What a kernel does not write is seen: outputs are full of NaN, or of a number nobody means, before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        made = make(*arguments, **options)
        return made.fill_(math.nan if made.is_floating_point() else -(2**31))

    return poisoned


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
