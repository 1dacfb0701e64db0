"""window_product: S_local P, which is a step of the walk without restart and without U."""

from __future__ import annotations

import torch
from torch import Tensor

from .walk_step import Step, tiling


def run(values: Tensor, p: Tensor, grid: list[int], window: list[int], *, transposed: bool = False) -> Tensor:
    """S_local P, or S_localᵀ P, in P's dtype; a batch of 1 on either side serves the other's."""
    batch, labels = max(values.shape[0], p.shape[0]), p.shape[2]
    out = torch.empty((batch, *p.shape[1:]), dtype=p.dtype, device=p.device)
    shares = (0.0, 0.0, 1.0)
    step = Step(
        grid,
        window,
        [0, 0],
        tiling(grid, None, batch * labels),
        shares,
        values=values.contiguous(),
        transposed=transposed,
    )
    step.plan(p.contiguous(), None, None, out).run()
    return out
