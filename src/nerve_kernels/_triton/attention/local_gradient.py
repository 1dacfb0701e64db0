"""The gradients of local_affinity: attention inside windows once more, each head by itself, and two window products."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._triton.walk import window_product
from nerve_kernels.grids import MIN_WINDOW_MASS

from . import fuse_attention_maps, local_affinity


def run(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    w: Tensor,
    lse: Tensor,
    grid: list[int],
    window: list[int],
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, w and lse, in float32."""
    heads = q.shape[:2]
    each_q, each_k, each_lse = (item.flatten(0, 1) for item in (q, k, lse))
    one = torch.ones((heads.numel(), 1), dtype=torch.float32, device=q.device)
    lone_q, lone_k, lone_lse = (item.unsqueeze(1) for item in (each_q, each_k, each_lse))
    p = local_affinity.run(lone_q, lone_k, one, lone_lse, grid, window, scale, False).unflatten(0, heads)
    if normalize:  # with z the sums and Z their row sum: dz = (g − Σ g z/Z)/Z
        sums = fuse_attention_maps.run(p, w, True)
        mass = sums.sum(-1, keepdim=True)
        expected = (grad * sums).sum(-1, keepdim=True) / mass
        grad = torch.where(mass < MIN_WINDOW_MASS, 0, (grad - expected) / mass)
    weighted = p.mul_(grad.unsqueeze(1))
    of_rows, weight = weighted.sum(-1), w.float().unsqueeze(-1)
    values = weighted.flatten(0, 1)
    grad_q = window_product.run(values, each_k.float(), grid, window).unflatten(0, heads)
    grad_k = window_product.run(values, each_q.float(), grid, window, transposed=True).unflatten(0, heads)
    factor = scale * weight.unsqueeze(-1)
    return factor * grad_q, factor * grad_k, of_rows.sum(-1), -weight * of_rows
