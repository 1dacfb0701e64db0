"""ProxyCLIP's refiner: attention over tokens whose features are more alike than most."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nerve_kernels._operators.attention.score_blocks import rows_per_block
from nerve_kernels._operators.checks import check_number, check_same_device, check_tensor
from nerve_kernels._operators.library import accumulation_dtype

from .seeds import as_given, batched_seeds


def similarity(features: Tensor, seeds: Tensor, *, beta: float = 1.2, gamma: float = 3.0) -> Tensor:
    """Seeds averaged over tokens with similar features, as ProxyCLIP does; no N × N matrix is made.

    ``P = softmax_j(γ (cos_ij − β m)) G``, where entries with ``γ (cos_ij − β m) < 0`` are left out before the softmax
    and ``m = (1/N²) Σ_ij cos_ij = ‖Σ_i f_i‖² / N²`` with f the features over their norm, of each image by itself. A
    token that is left with no entry at all keeps its seed.

    Args:
        features: (B, N, D) or (N, D), of a vision model such as DINO; float32, float16, bfloat16 or float64.
        seeds: G, (B, N, C) or (N, C): scores of C labels, or the values of all heads (ProxyCLIP's own use).
        beta: β, how many times the mean similarity an entry has to reach.
        gamma: γ > 0, the inverse temperature of the softmax.

    Returns:
        Refined scores, shape and dtype of ``seeds``.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: ProxyCLIP (Lan et al., ECCV 2024), adaptive normalisation and masking; β = 1.2 and γ = 3 are the defaults of
        its public code. There a token without entries becomes NaN, which happens for β m > 1 only. SC-CLIP's code uses
        the same with β = 1 and γ = 3 as one half of an attention.

    Example:
        >>> import torch
        >>> from nerve_kernels import refiners
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> refiners.similarity(features, torch.tensor([[1.0], [0.0], [0.0]]))[:, 0].tolist()
        [0.5, 0.5, 0.0]
    """
    single = isinstance(features, Tensor) and features.dim() == 2
    batched = check_tensor("features", features.unsqueeze(0) if single else features, 3, "(B, N, D) or (N, D)")
    share = check_number("beta", beta, wanted="such as 1.2")
    factor = check_number("gamma", gamma, low=0, wanted="> 0", low_open=True)
    given = batched_seeds(seeds, batched.shape[0], batched.shape[1], "features")
    check_same_device(features=batched, seeds=given)
    dtype = accumulation_dtype(batched, given)
    unit = functional.normalize(batched.to(dtype), dim=-1)
    refined = torch.stack([_refine(*image, share, factor) for image in zip(unit, given.to(dtype), strict=True)])
    return as_given(refined.to(seeds.dtype), seeds)


def _refine(unit: Tensor, seeds: Tensor, beta: float, gamma: float) -> Tensor:
    """One image, in blocks of rows."""
    tokens = len(unit)
    offset = gamma * beta * unit.sum(0).square().sum() / tokens**2
    blocks = []
    step = rows_per_block(tokens, unit.device)
    for rows, own in zip(unit.split(step), seeds.split(step), strict=True):
        scores = gamma * (rows @ unit.T) - offset
        left_out = scores < 0
        weights = scores.masked_fill(left_out, -torch.inf).softmax(-1)
        blocks.append(torch.where(left_out.all(-1, keepdim=True), own, weights @ seeds))
    return torch.cat(blocks)
