"""LPOSS: labels spread over the graph of patches that look alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nerve_kernels._operators.checks import (
    check_count,
    check_grid,
    check_optional,
    check_same_device,
    check_tensor,
    check_tokens,
    refusal,
)
from nerve_kernels._operators.library import accumulation_dtype
from nerve_kernels.affinity import knn_affinity
from nerve_kernels.grids import Grid

from .label_propagation import check_solver, propagate
from .memory import refuse_beyond_memory
from .seeds import as_given, batched_seeds

NEIGHBOURS = 400
BYTES_AN_EDGE = 128
"""What it takes to sort a neighbour and its counterpart into rows."""


def lposs(
    features: Tensor,
    scores: Tensor,
    *,
    grid: Grid | None = None,
    positions: Tensor | None = None,
    patch_size: float = 16,
    k: int | None = None,
    power: float = 3.0,
    distance_scale: float = 0.01,
    distance_power: float = 1.0,
    alpha: float = 0.95,
    iterations: int | None = None,
    tol: float = 1e-5,
) -> Tensor:
    """Scores spread over the graph of similar patches, as LPOSS does; all labels at once, to a certified error.

    ``(I − α S) X = Y``, ``S = D^−½ (W + Wᵀ) D^−½`` without self-edges, ``W[i, j] = max(0, cos_ij)^γ ·
    exp(−σ · distance_ijᵖ)`` for j among the k most similar to i. There is no factor 1 − α: scores grow, up to 1/(1 − α)
    times.

    Args:
        features: (B, N, D) or (N, D), of a vision model such as DINO; scaled to length 1 here.
        scores: Y, (B, N, C) or (N, C), any real numbers such as cosines with C texts.
        grid: (H, W) of the patches, row-major; or give ``positions``. Needed where ``distance_scale`` is not 0.
        positions: (N, 2) or (B, N, 2), where the patches' centres are, in pixels; of all windows of an image together.
        patch_size: Pixels of a patch along a side.
        k: Neighbours of each token, itself among them, from 1 to N; ``None``: 400, or N where there are fewer.
        power: γ ≥ 0.
        distance_scale: σ ≥ 0, for distances in pixels.
        distance_power: p > 0.
        alpha: α in [0, 1).
        iterations: So many conjugate gradient steps from 0, as the public code takes 10; ``None`` solves to ``tol``.
        tol: Largest elementwise error of X that is accepted, certified by the residual.

    Returns:
        X, shape and dtype of ``scores``. A token without neighbours keeps its scores.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        MemoryError: before work starts, with the bytes that the graph would take.

    Source: LPOSS (Stojnić et al., CVPR 2025); its settings are the defaults (``power`` is its gamma, ``distance_scale``
        its sigma, ``distance_power`` its pix_dist_pow). The public code solves one label after the other on a GPU and
        stops after 10 steps of conjugate gradients (50 in its first version) or at a relative residual of 1e-6,
        whichever comes first, and does not look at which.

    Example:
        >>> import torch
        >>> from nerve_kernels import refiners
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> X = refiners.lposs(features, torch.tensor([[1.0], [0.0], [0.0], [0.0]]), grid=(2, 2), k=2)
        >>> bool(X[1] > 9), X[2:].flatten().tolist()  # the second token resembles the first, the others do not
        (True, [0.0, 0.0])
    """
    single = isinstance(features, Tensor) and features.dim() == 2
    batched = check_tensor("features", features.unsqueeze(0) if single else features, 3, "(B, N, D) or (N, D)")
    batch, tokens, _ = batched.shape
    y = batched_seeds(scores, batch, tokens, "features")
    check_same_device(features=batched, scores=y)
    share, count, wanted = check_solver(alpha, iterations, tol)
    neighbours = check_optional(check_count, "k", k, low=1, high=tokens, wanted=f"from 1 to N = {tokens}")
    if neighbours is None:
        neighbours = min(NEIGHBOURS, tokens)
    if positions is None and distance_scale:
        if grid is None:
            raise ValueError(refusal("grid", "(H, W) of the patches, or their positions", None))
        check_tokens("grid", check_grid("grid", grid), tokens, "features")
        positions = patch_positions(grid, patch_size, batched.device)
    needed = BYTES_AN_EDGE * batch * tokens * neighbours
    refuse_beyond_memory("k", needed, batched.device, "give fewer neighbours, or refine at a lower resolution")
    S = knn_affinity(
        functional.normalize(batched.to(accumulation_dtype(batched)), dim=-1),
        neighbours,
        power=power,
        positions=positions,
        distance_scale=distance_scale,
        distance_power=distance_power,
        normalize="symmetric",
    )
    return as_given(propagate(S, y, share, count, wanted), scores)


def patch_positions(grid: Grid, patch_size: float, device: torch.device) -> Tensor:
    """(N, 2): where patches lie, row-major, in pixels."""
    rows, columns = (torch.arange(side, device=device) * float(patch_size) for side in grid)
    return torch.cartesian_prod(rows, columns).view(-1, 2)
