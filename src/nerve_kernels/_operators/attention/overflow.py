"""Scores past the range of the dtype they are summed in: refused wherever that can be seen without waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.checks import refusal


def refuse_overflow(q: Tensor, k: Tensor, lse: Tensor) -> None:
    """Raise where finite q and k have a row of scores past the numbers of ``lse``, whose entropy would be NaN.

    To look at numbers on a GPU is to wait for it.
    """
    if math.isfinite(lse.sum().item()):
        return
    finite = q.isfinite().all(-1) & k.isfinite().flatten(2).all(-1, keepdim=True)
    rows = int((finite & ~lse.isfinite()).sum())
    if rows:
        wanted = f"scores within ±{torch.finfo(lse.dtype).max:.3g}"
        raise ValueError(refusal("q, k, scale", wanted, f"{rows} rows beyond", "make scale smaller, or give float64"))


def refusing_overflow(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """An implementation, whose second result is lse, that refuses what overflows on the CPU and waits for no GPU."""

    def run_and_look(q: Tensor, k: Tensor, *options: Any) -> tuple[Tensor, ...]:
        results = run(q, k, *options)
        if q.device.type == "cpu":
            refuse_overflow(q, k, results[1])
        return results

    return run_and_look
