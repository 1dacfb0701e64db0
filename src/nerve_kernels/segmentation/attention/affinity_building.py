"""From captured queries and keys to one affinity: stages 1 and 2 of the method."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch

import nerve_kernels as nk
from nerve_kernels._operators.checks import refusal
from nerve_kernels.affinity import Affinity
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.finite import require_finite
from nerve_kernels.segmentation.kept import Kept
from nerve_kernels.segmentation.phases import AFFINITY, DIFFUSION, phase

from .source import CapturedLayer

# Of each kind: an ablation's criteria, or the places that a slider goes back and forth between.
MAX_KEPT = 8


def largest_grid(layers: Sequence[CapturedLayer]) -> tuple[int, int]:
    """The grid with the most tokens: the walk runs on it."""
    return max((layer.grid for layer in layers), key=lambda grid: grid[0] * grid[1])


def check_affinity_settings(config: NerveConfig, *, maps: int, sides: Sequence[int]) -> None:
    """Refuse a config that asks for more than the chosen layers give.

    Window and cells are judged on a square image: others have grids at least as large, except for images longer than
    four times their width.

    Args:
        config: keep, window and cells are looked at.
        maps: how many attention maps there are, over all chosen layers, heads and timesteps.
        sides: of a square image's token grid, for each chosen layer.

    Raises:
        ValueError: names the field, what was expected, what came.
    """
    if config.keep is not None and config.keep > maps:
        most = f"at most the {maps} attention maps of the chosen layers and timesteps"
        raise ValueError(refusal("keep", most, config.keep))
    finest, coarsest = max(sides), min(sides)
    for window in _both(config.window):
        if window > 2 * finest - 1:
            raise ValueError(refusal("window", f"at most {2 * finest - 1} on a grid of {finest} tokens a side", window))
    for cells in () if config.cells is None else _both(config.cells):
        if cells > coarsest:
            most = f"at most {coarsest}, the side of the coarsest chosen layer's grid"
            raise ValueError(refusal("cells", most, cells))


class AffinityBuilder:
    """Builds affinities of one image, and keeps what all of them share.

    Args:
        layers: queries and keys of at least one layer.

    Entropies do not depend on the config; head weights, the local and the global affinity are kept by the settings
    that each depends on, the latest few. So beta, alpha and the steps of the walk cost no new affinity.
    """

    def __init__(self, layers: Sequence[CapturedLayer]) -> None:
        if not layers:
            raise ValueError(refusal("layers", "the queries and keys of at least one layer", "none"))
        self.layers = tuple(layers)
        self.grid = largest_grid(layers)
        self._entropies: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None
        self._weights: Kept[list[torch.Tensor]] = Kept(MAX_KEPT)
        self._local: Kept[nk.LocalAffinity] = Kept(MAX_KEPT)
        self._global: Kept[nk.LowRankAffinity] = Kept(MAX_KEPT)

    def entropies(self, backend: str | None = None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per layer the entropies (B, heads, N) in nats, and the logarithms of the softmax's sums."""
        if self._entropies is None:
            pairs = [nk.attention_entropy(layer.q, layer.k, return_lse=True, backend=backend) for layer in self.layers]
            for entropy, _ in pairs:  # as finite as the queries and keys, and far smaller
                require_finite(entropy, DIFFUSION)
            self._entropies = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return self._entropies

    def weights(self, config: NerveConfig) -> list[torch.Tensor]:
        """Per layer the head weights (B, heads); they sum to 1 over all layers and heads."""
        return self._weights.get(_settings(config), lambda: self._weigh(config))

    def _weigh(self, config: NerveConfig) -> list[torch.Tensor]:
        entropies, lses = self.entropies(config.backend)
        marginals = None
        if config.criterion == "information":
            marginals = [
                nk.attention_marginal(layer.q, layer.k, lse=lse, backend=config.backend)
                for layer, lse in zip(self.layers, lses, strict=True)
            ]
        return nk.head_weights(
            entropies,
            num_keys=[layer.k.shape[2] for layer in self.layers],
            temperature=config.temperature,
            criterion=cast(Any, config.criterion),
            marginal=marginals,
            keep=None if config.criterion == "uniform" else config.keep,  # equal heads have no best ones
        )

    def build(self, config: NerveConfig) -> Affinity:
        """S = β S_global + (1 − β) S_local on the largest grid; at β = 0 or 1 one alone.

        Args:
            config: criterion, temperature, keep, window, cells, beta and backend are used. On an
                image so narrow that its grid cannot hold them, window and cells are cut to it;
                the window then still reaches every token that it would have reached.

        Returns:
            An affinity for :func:`nerve_kernels.random_walk`.
        """
        if config.beta == 0.0:
            return self.local_affinity(config)
        if config.beta == 1.0:
            return self.global_affinity(config)
        return nk.mix(self.global_affinity(config), self.local_affinity(config), beta=config.beta)

    def local_affinity(self, config: NerveConfig) -> nk.LocalAffinity:
        """S_local; of the config, beta and cells are not used."""
        window = _at_most(config.window, [2 * side - 1 for side in self.grid])

        @phase(AFFINITY, "local")
        def make() -> nk.LocalAffinity:
            q, k, weights, options = self._inputs(config)
            return nk.local_affinity(q, k, weights, window=window, **options)

        return self._local.get((*_settings(config), window), make)

    def global_affinity(self, config: NerveConfig) -> nk.LowRankAffinity:
        """S_global; of the config, beta and window are not used."""
        fewest = [min(sides) for sides in zip(*(layer.grid for layer in self.layers), strict=True)]
        cells = None if config.cells is None else _at_most(config.cells, fewest)

        @phase(AFFINITY, "global")
        def make() -> nk.LowRankAffinity:
            q, k, weights, options = self._inputs(config)
            return nk.global_affinity(q, k, weights, cells=cells, **options)

        return self._global.get((*_settings(config), cells), make)

    def _inputs(
        self, config: NerveConfig
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], dict[str, Any]]:
        """q, k, weights and the options that both affinities take."""
        weights = self.weights(config)
        _, lses = self.entropies(config.backend)
        grids = [layer.grid for layer in self.layers]
        options = {"grid": self.grid, "grids": grids, "lse": lses, "backend": config.backend}
        return [layer.q for layer in self.layers], [layer.k for layer in self.layers], weights, options


def _settings(config: NerveConfig) -> tuple[Hashable, ...]:
    """What head weights depend on, and with them every affinity."""
    return config.criterion, config.temperature, config.keep, config.backend


def _at_most(sides: int | tuple[int, int], limits: Sequence[int]) -> tuple[int, int]:
    first, second = _both(sides)
    return min(first, limits[0]), min(second, limits[1])


def _both(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides
