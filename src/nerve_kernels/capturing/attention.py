"""What was captured of a model, and the affinity that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from nerve_kernels._operators.checks import refusal
from nerve_kernels.affinity import LocalAffinity, LowRankAffinity, MixedAffinity
from nerve_kernels.grids import Grid
from nerve_kernels.heads import Criterion
from nerve_kernels.statistics import AttentionStatistics, attention_statistics, weigh_heads


@dataclass(frozen=True, eq=False)
class CapturedLayer:
    """q and k of one call of a self-attention layer: of the picture's tokens only, after norms and rotary positions.

    Args:
        name: Its module's name.
        q: (B, heads, N, d), row-major on ``grid``; a view of what the model computed.
        k: The same of the keys; heads that share keys have copies of them.
        grid: (H, W).
        scale: Factor of the scores, where it is not 1/√d.
    """

    name: str
    q: Tensor
    k: Tensor
    grid: Grid
    scale: float | None = None

    @property
    def scaled_q(self) -> Tensor:
        """q with which scores are q kᵀ/√d, whatever the layer's own scale."""
        return self.q if self.scale is None else self.q * (self.scale * self.q.shape[-1] ** 0.5)


@dataclass(eq=False)
class CapturedAttention:
    """The layers captured so far, in the order in which they ran; each pass of the model adds its own."""

    layers: list[CapturedLayer] = field(default_factory=list)

    def statistics(
        self, *, window: int | Grid = 7, cells: int | Grid | None = None, global_sharpness: float = 1.0
    ) -> AttentionStatistics:
        """:func:`attention_statistics` of all layers; see there.

        Raises:
            RuntimeError: nothing was captured yet.
        """
        if not self.layers:
            do = "run the model within `with nerve_kernels.capture(model) as attention:`"
            raise RuntimeError(refusal("layers", "at least one captured layer", "none", do))
        return attention_statistics(
            [layer.scaled_q for layer in self.layers],
            [layer.k for layer in self.layers],
            grids=[layer.grid for layer in self.layers],
            window=window,
            cells=cells,
            global_sharpness=global_sharpness,
        )

    def affinity(
        self,
        *,
        criterion: Criterion = "entropy",
        temperature: float = 0.1,
        keep: int | None = None,
        window: int | Grid = 7,
        cells: int | Grid | None = None,
        beta: float = 0.5,
        global_sharpness: float = 1.0,
    ) -> LocalAffinity | LowRankAffinity | MixedAffinity:
        """S of all layers: heads weighed over all of them, on the finest grid.

        ``S = β S_global + (1−β) S_local`` under ``w = head_weights(…)``

        Args:
            criterion: As for :func:`head_weights`; on vision transformers, whose heads have sinks,
                ``"cell_information"`` serves better than the paper's ``"entropy"``.
            temperature: τ > 0 of the weights.
            keep: Only the ``keep`` best heads.
            window: Odd int or pair, in tokens.
            cells: Cells of the global part along a side, or a pair; ``None``: min(16, side).
            beta: β in [0, 1].
            global_sharpness: γ > 0, as for :func:`attention_statistics`.

        Returns:
            The affinity, row-stochastic.

        Raises:
            TypeError, ValueError: for a bad argument, named. RuntimeError: nothing was captured.

        Source: NERVE, arXiv 2511.08248.

        Example: at :func:`capture`.
        """
        stats = self.statistics(window=window, cells=cells, global_sharpness=global_sharpness)
        q, k = [layer.scaled_q for layer in self.layers], [layer.k for layer in self.layers]
        w = weigh_heads(stats, q, k, criterion=criterion, temperature=temperature, keep=keep)
        return stats.affinity(w, beta)
