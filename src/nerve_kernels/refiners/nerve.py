"""Our refiner: head weights by entropy, a local and a global affinity, a random walk with restart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nerve_kernels.grids import Grid
from nerve_kernels.heads import Criterion
from nerve_kernels.statistics import as_list, attention_statistics, weigh_heads
from nerve_kernels.walk import random_walk

from .seeds import as_given, batched_seeds


def nerve(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    seeds: Tensor,
    *,
    grid: Grid | None = None,
    grids: Sequence[Grid] | None = None,
    scale: float | None = None,
    criterion: Criterion = "entropy",
    temperature: float = 0.1,
    keep: int | None = None,
    window: int | Grid = 7,
    cells: int | Grid | None = None,
    beta: float = 0.5,
    alpha: float = 0.9,
    steps: int | None = None,
    tol: float | None = None,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Seeds refined by NERVE: sharp heads count more, and a random walk with restart spreads the seeds.

    ``P₀ = G;  P_l = (1−α) G + α (β S_global + (1−β) S_local) P_{l−1}``, S from attention whose heads are weighed by
    :func:`~nerve_kernels.head_weights`; the whole method of this package in one call.

    Args:
        q: Queries (B, heads, N, d), or a list, one for each layer.
        k: Keys, as ``q``.
        seeds: G, (B, N, C) or (N, C), on the tokens of ``grid``; rows usually sum to 1.
        grid: (H, W) of the tokens; for lists the grid of the seeds, ``None`` meaning the finest.
        grids: For lists, (H, W) of each layer.
        scale: Factor of the scores; ``None`` means 1/√d of each layer.
        criterion: Of :func:`~nerve_kernels.head_weights`, as are ``temperature`` and ``keep``.
        temperature: τ > 0.
        keep: Keep the ``keep`` best heads; ``None``: all.
        window: Side of the local affinity's window, odd.
        cells: Cells of the global affinity along a side; ``None``: min(16, side).
        beta: β in [0, 1], the share of the global affinity.
        alpha: α in [0, 1), the weight of the neighbours.
        steps: L ≥ 0; at most one of ``steps`` and ``tol``, 20 steps where neither is given.
        tol: Largest distance to the walk's limit instead.
        normalize: Divide each row of the result by its sum.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        P_L, shape and dtype of ``seeds``.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: NERVE, arXiv 2511.08248. The values of all settings are ours: the paper does not give them.

    Example:
        >>> import torch
        >>> from nerve_kernels import refiners
        >>> q = torch.randn(1, 2, 64, 8, generator=torch.Generator().manual_seed(0))
        >>> refiners.nerve(q, q, torch.rand(64, 3), grid=(8, 8), window=3).shape
        torch.Size([64, 3])
    """
    stats = attention_statistics(q, k, grid=grid, window=window, cells=cells, grids=grids, scale=scale, backend=backend)
    batch = as_list(stats.entropy)[0].shape[0]
    batched = batched_seeds(seeds, batch, stats.grid[0] * stats.grid[1], "the grid of q")
    w = weigh_heads(
        stats,
        as_list(q),
        as_list(k),
        criterion=criterion,
        temperature=temperature,
        keep=keep,
        scale=scale,
        backend=backend,
    )
    S = stats.affinity(w[0] if isinstance(q, Tensor) else w, beta, backend=backend)
    count = 20 if steps is None and tol is None else steps
    refined = random_walk(batched, S, alpha=alpha, steps=count, tol=tol, normalize=normalize, backend=backend)
    return as_given(refined, seeds)
