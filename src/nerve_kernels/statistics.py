"""Stages 1 and 2 from one look at the scores: what is kept of every head, so that weights and shares may come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._operators import attention as operators
from ._operators.attention.local_affinity import normalize_window_rows
from ._operators.checks import check_backend, check_head_weights, check_number, check_window, refusal
from .affinity import LocalAffinity, LowRankAffinity, MixedAffinity, mix
from .attention import attention_marginal
from .attention_layers import check_layers, common_cells, layer_prefix, one_or_many, refuse_finer
from .grids import Grid
from .heads import Criterion, head_weights
from .layers_on_grid import blend_rows, spread_window_sums, window_on_layer

STORAGE = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class AttentionStatistics:
    """What :func:`attention_statistics` keeps of each head; tensors for one layer, lists of them for several.

    Args:
        entropy: (B, heads, N), nats, for :func:`head_weights`.
        lse: (B, heads, N), log Σ e^score of each row.
        local: (B, heads, N, kh·kw), the share of a row's attention on each token of its window, 0 outside the grid.
        pooled: (B, heads, N, h·w), its share on each cell; rows sum to 1.
        grid: (H, W) of the affinities.
        window: (kh, kw) of the local affinity.
        cells: (h, w) of the global affinity.
        grids: (H, W) of each layer.
        windows: The window that was kept of each layer: of a coarser one, what reaches as far as ``window`` does.
    """

    entropy: Tensor | list[Tensor]
    lse: Tensor | list[Tensor]
    local: Tensor | list[Tensor]
    pooled: Tensor | list[Tensor]
    grid: Grid
    window: Grid
    cells: Grid
    grids: tuple[Grid, ...]
    windows: tuple[Grid, ...]

    @property
    def num_keys(self) -> int | list[int]:
        """N_k of the layer, or of each, as :func:`head_weights` takes it."""
        counts = [height * width for height, width in self.grids]
        return counts[0] if isinstance(self.entropy, Tensor) else counts

    def affinity(
        self, w: Tensor | Sequence[Tensor], beta: float = 0.5, *, backend: str | None = None
    ) -> LocalAffinity | LowRankAffinity | MixedAffinity:
        """S = β S_global + (1−β) S_local under any head weights: one pass over what was kept.

        Args:
            w: Head weights (B, heads), or a list, one for each layer, from :func:`head_weights`.
            beta: β in [0, 1]; at 0 only the local part is made, at 1 only the global one.
            backend: ``None`` chooses; a named backend runs or raises.

        Returns:
            :class:`LocalAffinity`, :class:`LowRankAffinity` or :class:`MixedAffinity`, equal to those of
            :func:`local_affinity` and :func:`global_affinity` up to rounding.

        Raises:
            TypeError, ValueError: for a bad argument, named.

        Example:
            >>> import torch, nerve_kernels as nk
            >>> q = torch.zeros(1, 2, 12, 4)  # uniform attention
            >>> stats = nk.attention_statistics(q, q, grid=(3, 4), window=3, cells=(1, 2))
            >>> S = stats.affinity(torch.tensor([[0.5, 0.5]]), beta=0.5)
            >>> round(S.local.values[0, 5, 0].item(), 6), [round(x, 6) for x in S.low_rank.u[0, 0].tolist()]
            (0.111111, [0.5, 0.5])
        """
        share = check_number("beta", beta, low=0, high=1, wanted="in [0, 1]")
        if share == 0:
            return self.local_affinity(w, backend=backend)
        if share == 1:
            return self.global_affinity(w, backend=backend)
        return mix(self.global_affinity(w, backend=backend), self.local_affinity(w, backend=backend), share)

    def local_affinity(self, w: Tensor | Sequence[Tensor], *, backend: str | None = None) -> LocalAffinity:
        """S_local under head weights; the window is renormalised after heads and layers are summed."""
        total: Tensor | None = None
        layers = zip(self._fuse(self.local, w, backend), self.grids, self.windows, strict=True)
        for fused, layer_grid, layer_window in layers:
            part = spread_window_sums(fused, layer_grid, layer_window, self.grid, self.window)
            total = part if total is None else total + part
        assert total is not None
        return LocalAffinity(normalize_window_rows(total), grid=self.grid, window=self.window)

    def global_affinity(self, w: Tensor | Sequence[Tensor], *, backend: str | None = None) -> LowRankAffinity:
        """S_global under head weights."""
        u: Tensor | None = None
        for fused, layer_grid in zip(self._fuse(self.pooled, w, backend), self.grids, strict=True):
            part = blend_rows(fused, layer_grid, self.grid)
            u = part if u is None else u + part
        assert u is not None
        return LowRankAffinity(u, grid=self.grid, cells=self.cells)

    def _fuse(self, kept: Tensor | list[Tensor], w: Tensor | Sequence[Tensor], backend: str | None) -> list[Tensor]:
        """Σ_h w_h of each layer, (B, N, columns) in float32 or better."""
        check_backend(backend)
        layers = [kept] if isinstance(kept, Tensor) else kept
        weights = one_or_many(w, "w", len(layers))
        for index, (weight, layer) in enumerate(zip(weights, layers, strict=True)):
            check_head_weights(weight, layer, layer_prefix(kept, index))
        return [
            operators.fuse_attention_maps(layer, weight, True, backend)
            for layer, weight in zip(layers, weights, strict=True)
        ]


def attention_statistics(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    *,
    grid: Grid | None = None,
    window: int | Grid = 7,
    cells: int | Grid | None = None,
    grids: Sequence[Grid] | None = None,
    scale: float | None = None,
    global_sharpness: float = 1.0,
    storage: torch.dtype = torch.float32,
    backend: str | None = None,
) -> AttentionStatistics:
    """Entropy, lse, window and cells of every head in one pass over its scores; head weights may then come and go.

    ``𝓗ᵢ = −Σⱼ Aᵢⱼ log Aᵢⱼ``, ``local[i, o] = A[i, i+o]``, ``pooled[i, m] = Σ_{j in cell m} A'ᵢⱼ`` with
    ``A = softmax(scale · q kᵀ)`` and ``A' = softmax(γ · scale · q kᵀ)``. Only the weights depend on all rows, so what
    is summed under them is kept by head: :meth:`AttentionStatistics.affinity` weighs it in one pass over memory.

    Args:
        q: Queries (B, heads, N, d), or a list, one for each layer; float32, float16, bfloat16 or float64, any strides.
        k: Keys, as ``q``.
        grid: (H, W) with H·W = N. For lists, the grid of the affinities; ``None`` means the finest of ``grids``.
        window: Odd int or pair of odd ints, at most 2 · side − 1.
        cells: (h, w), an int for both, or ``None`` for min(16, smallest side of any layer) along each side.
        grids: For lists, (H, W) of each layer, none finer than ``grid``. A coarser layer keeps the window that reaches
            as far, and is brought to ``grid`` as :func:`local_affinity` and :func:`global_affinity` bring it.
        scale: Factor of the scores; ``None`` means 1/√d of each layer.
        global_sharpness: γ > 0: the cells hold softmax(γ · scores); entropy and window use the scores as they are.
        storage: Dtype of ``local`` and ``pooled``: float32 (float64 for float64 inputs) or bfloat16, half the memory
            and 3 digits. float16 cannot hold the share of a far key.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        :class:`AttentionStatistics`: (kh·kw + h·w) numbers a row and head.

    Raises:
        TypeError, ValueError: for a bad argument, named; on the CPU also for scores past float32.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: NERVE, arXiv 2511.08248, 𝓗⁽ʰ⁾, S_local, S_global; one pass for all and the sharpness are ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.randn(1, 2, 64, 8, generator=torch.Generator().manual_seed(0))
        >>> stats = nk.attention_statistics(q, q, grid=(8, 8), window=3)
        >>> w = nk.head_weights(stats.entropy, num_keys=stats.num_keys)
        >>> stats.affinity(w, beta=0.5).shape
        (1, 64, 64)
    """
    check_backend(backend)
    if storage not in STORAGE:
        raise ValueError(refusal("storage", "torch.float32 or torch.bfloat16", storage))
    sharpness = check_number("global_sharpness", global_sharpness, low=0, wanted="> 0", low_open=True)
    layers, target = check_layers(q, k, grid, grids, scale)
    given = tuple(layer.grid for layer in layers)
    for index, layer_grid in enumerate(given):
        refuse_finer(index, layer_grid, target)
    pair = check_window(window, target)
    count = common_cells(cells, given, target)
    windows = tuple(window_on_layer(layer_grid, target, pair) for layer_grid in given)
    bfloat16 = storage == torch.bfloat16
    found = [
        operators.attention_statistics(
            layer.q, layer.k, layer.grid, layer_window, count, layer.scale, sharpness, bfloat16, backend
        )
        for layer, layer_window in zip(layers, windows, strict=True)
    ]
    fields = [[item[place] for item in found] for place in range(4)]
    entropy, lse, local, pooled = (field[0] for field in fields) if isinstance(q, Tensor) else fields
    return AttentionStatistics(entropy, lse, local, pooled, target, pair, count, given, windows)


def weigh_heads(
    stats: AttentionStatistics,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    *,
    criterion: Criterion,
    temperature: float,
    keep: int | None,
    scale: float | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """:func:`head_weights` of all layers, from what was kept; ``"information"`` takes another pass over q and k."""
    entropies, pooled, lses = (as_list(part) for part in (stats.entropy, stats.pooled, stats.lse))
    marginals = None
    if criterion == "information":
        marginals = [
            attention_marginal(layer_q, layer_k, scale=scale, lse=lse, backend=backend)
            for layer_q, layer_k, lse in zip(q, k, lses, strict=True)
        ]
    return head_weights(
        entropies,
        num_keys=[height * width for height, width in stats.grids],
        temperature=temperature,
        criterion=criterion,
        marginal=marginals,
        pooled=pooled if criterion == "cell_information" else None,
        keep=keep,
    )


def as_list(layers: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One layer as a list of one."""
    return [layers] if isinstance(layers, Tensor) else list(layers)
