"""cliper: seeds under the product of all heads' sharpened attention, A₁ (A₂ (⋯ (A_H G))), in blocks of rows.

A block of rows has all its keys, so its lse is known at once and the largest entry of each column can be taken in the
same pass; a second pass knows these and multiplies. No head's map is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Operator, accumulation_dtype

from .score_blocks import rows_per_block, scores

EPSILON = 1e-5
"""What the public code of CLIPer adds to the largest entry of a column and to the sum of a row."""


def eager(q: Tensor, k: Tensor, seeds: Tensor, scale: float, threshold: float) -> Tensor:
    """One head after the other, the last one first; two passes over the scores of each."""
    dtype = accumulation_dtype(q, k, seeds)
    step = rows_per_block(k.shape[2], q.device)
    refined = seeds.to(dtype, copy=True)
    if not refined.numel():
        return seeds.new_empty(seeds.shape)
    for head in reversed(range(q.shape[1])):
        refined = torch.stack(
            [_apply_head(q[b, head], k[b, head], refined[b], scale, threshold, step) for b in range(len(q))]
        )
    return refined.to(seeds.dtype).contiguous()


def _apply_head(q: Tensor, k: Tensor, p: Tensor, scale: float, threshold: float, step: int) -> Tensor:
    """One head's sharpened map (N, N) times P (N, C)."""
    largest = p.new_full((len(k),), -torch.inf)
    lse = []
    for q_rows in q.split(step):
        block = scores(q_rows, k, scale, p.dtype)
        lse.append(block.logsumexp(-1, keepdim=True))
        largest = torch.maximum(largest, block.sub_(lse[-1]).amax(0))
    share = 1 / (largest.exp() + EPSILON)
    products = []
    for q_rows, rows_lse in zip(q.split(step), lse, strict=True):
        block = scores(q_rows, k, scale, p.dtype).sub_(rows_lse).exp_().mul_(share)
        block.masked_fill_(block < threshold, 0)
        products.append((block @ p).div_(block.sum(-1, keepdim=True).add_(EPSILON)))
    return torch.cat(products)


def fake(q: Tensor, k: Tensor, seeds: Tensor, scale: float, threshold: float) -> Tensor:
    """As the seeds."""
    return seeds.new_empty(seeds.shape)


def no_gradient(*arguments: object) -> tuple[None, ...]:
    """Thresholds have none that would be of use."""
    raise NotImplementedError("cliper: gradients are not implemented; take seeds.detach(), or the method 'nerve'")


cliper = Operator(
    "cliper(Tensor q, Tensor k, Tensor seeds, float scale, float threshold) -> Tensor",
    eager=eager,
    fake=fake,
    backward=no_gradient,
)
