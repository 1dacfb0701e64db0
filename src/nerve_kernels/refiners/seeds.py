"""Seeds as refiners take them: label columns of tokens, one image or a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nerve_kernels._operators.checks import check_batch, check_tensor, refusal, shape_of


def batched_seeds(seeds: Any, batch: int, tokens: int, of: str) -> Tensor:
    """Seeds as (B, N, C), checked against the batch and the tokens that ``of`` has."""
    single = isinstance(seeds, Tensor) and seeds.dim() == 2
    batched = check_tensor("seeds", seeds.unsqueeze(0) if single else seeds, 3, "(B, N, C) or (N, C)")
    if batched.shape[1] != tokens:
        raise ValueError(refusal("seeds", f"{tokens} tokens as {of} has", shape_of(seeds)))
    check_batch("seeds", batched.shape[0], batch, f" as {of} has")
    if batched.shape[0] != batch:
        if batched.shape[0] != 1:
            raise ValueError(refusal(of, f"a batch of {batched.shape[0]} as seeds have", batch))
        batched = batched.expand(batch, -1, -1)
    return batched


def as_given(refined: Tensor, seeds: Tensor) -> Tensor:
    """(N, C) where the seeds came so and one image was refined."""
    return refined[0] if seeds.dim() == 2 and len(refined) == 1 else refined
