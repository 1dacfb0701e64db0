"""From captured queries and keys to one affinity: stages 1 and 2 of the method."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, cast

import torch

import nerve_kernels as nk
from nerve_kernels._operators.checks import refusal
from nerve_kernels.affinity import Affinity
from nerve_kernels.environment import statistics_memory
from nerve_kernels.grids import default_cells
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.finite import require_finite
from nerve_kernels.segmentation.kept import Kept
from nerve_kernels.segmentation.phases import AFFINITY, DIFFUSION, phase

from .source import CapturedLayer

# Of each kind: an ablation's criteria, or the places that a slider goes back and forth between.
MAX_KEPT = 8


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

    One pass over the scores keeps what every head gives to windows and cells, so that other head weights are a matter
    of reading it; where that would not fit into memory (``NERVE_KERNELS_STATISTICS_MEMORY``), entropies and affinities
    are passes of their own. Which of the two depends on the config alone, never on what was built before. Weights and
    affinities are kept by the settings that each depends on, the latest few. So beta, alpha and the steps of the walk
    cost no new affinity.
    """

    def __init__(self, layers: Sequence[CapturedLayer]) -> None:
        if not layers:
            raise ValueError(refusal("layers", "the queries and keys of at least one layer", "none"))
        self._prepare(layers, [layer.grid for layer in layers])

    def _prepare(self, layers: Sequence[CapturedLayer], grids: Sequence[tuple[int, int]]) -> None:
        self.layers, self.grids = tuple(layers), list(grids)
        self.grid = max(grids, key=lambda grid: grid[0] * grid[1])  # the walk runs on the most tokens
        self._entropies: Kept[tuple[list[torch.Tensor], list[torch.Tensor]]] = Kept(MAX_KEPT)
        self._statistics: Kept[nk.AttentionStatistics] = Kept(1)  # as large as the variable allows
        self._weights: Kept[list[torch.Tensor]] = Kept(MAX_KEPT)
        self._local: Kept[nk.LocalAffinity] = Kept(MAX_KEPT)
        self._global: Kept[nk.LowRankAffinity] = Kept(MAX_KEPT)

    def statistics(self, config: NerveConfig) -> nk.AttentionStatistics | None:
        """What every head gives to the config's windows and cells, or None where that would not fit."""
        if not self._statistics_fit(config):
            return None
        window, cells, sharpness = self._window(config), self._cells(config), config.global_sharpness

        def look() -> nk.AttentionStatistics:
            q, k = [layer.q for layer in self.layers], [layer.k for layer in self.layers]
            backend = config.backend
            found = nk.attention_statistics(
                q,
                k,
                grid=self.grid,
                grids=self.grids,
                window=window,
                cells=cells,
                global_sharpness=sharpness,
                backend=backend,
            )
            _require_finite(found.entropy)
            return found

        return self._statistics.get((window, cells, sharpness, config.backend), look)

    def entropies(self, config: NerveConfig) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per layer the entropies (B, heads, N) in nats, and the logarithms of the softmax's sums."""
        found = self.statistics(config)
        if found is not None:
            return list(found.entropy), list(found.lse)

        def a_pass_each() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            options: dict[str, Any] = {"return_lse": True, "backend": config.backend}
            pairs = [nk.attention_entropy(layer.q, layer.k, **options) for layer in self.layers]
            _require_finite([pair[0] for pair in pairs])
            return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

        return self._entropies.get(config.backend, a_pass_each)

    def _statistics_fit(self, config: NerveConfig) -> bool:
        if any(side > limit for grid in self.grids for side, limit in zip(grid, self.grid, strict=True)):
            return False
        cells = self._cells(config) or default_cells(self._coarsest())
        window = self._window(config)
        row = 4 * (window[0] * window[1] + cells[0] * cells[1])
        return sum(layer.q.shape[:3].numel() * row for layer in self.layers) <= statistics_memory()

    def _settings(self, config: NerveConfig) -> tuple[Hashable, ...]:
        """What head weights depend on, and with them every affinity."""
        of_cells = (config.cells, config.global_sharpness) if config.criterion == "cell_information" else None
        fit = self._statistics_fit(config)  # the two ways agree up to rounding only
        return config.criterion, config.temperature, config.keep, config.backend, of_cells, fit

    def _window(self, config: NerveConfig) -> tuple[int, int]:
        return _at_most(config.window, [2 * side - 1 for side in self.grid])

    def _cells(self, config: NerveConfig) -> tuple[int, int] | None:
        return None if config.cells is None else _at_most(config.cells, self._coarsest())

    def _coarsest(self) -> tuple[int, int]:
        return min(grid[0] for grid in self.grids), min(grid[1] for grid in self.grids)

    def weights(self, config: NerveConfig) -> list[torch.Tensor]:
        """Per layer the head weights (B, heads); they sum to 1 over all layers and heads."""
        return self._weights.get(self._settings(config), lambda: self._weigh(config))

    def _weigh(self, config: NerveConfig) -> list[torch.Tensor]:
        entropies, lses = self.entropies(config)
        marginals = None
        if config.criterion == "information":
            marginals = [
                nk.attention_marginal(layer.q, layer.k, lse=lse, backend=config.backend)
                for layer, lse in zip(self.layers, lses, strict=True)
            ]
        return nk.head_weights(
            entropies,
            num_keys=[height * width for height, width in self.grids],
            temperature=config.temperature,
            criterion=cast(Any, config.criterion),
            marginal=marginals,
            pooled=self._pooled(config) if config.criterion == "cell_information" else None,
            keep=None if config.criterion == "uniform" else config.keep,  # equal heads have no best ones
        )

    def _pooled(self, config: NerveConfig) -> list[torch.Tensor]:
        """The attention of each layer's heads to the cells."""
        found = self.statistics(config)
        if found is not None:
            return list(found.pooled)
        kept = [
            nk.attention_statistics(
                layer.q,
                layer.k,
                grid=layer.grid,
                window=1,
                cells=self._cells(config),
                global_sharpness=config.global_sharpness,
                backend=config.backend,
            )
            for layer in self.layers
        ]
        return [one.pooled for one in kept]  # type: ignore[misc]

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
        window = self._window(config)

        @phase(AFFINITY, "local")
        def make() -> nk.LocalAffinity:
            found = self.statistics(config)
            if found is not None:
                return found.local_affinity(self.weights(config), backend=config.backend)
            q, k, weights, options = self._inputs(config)
            return nk.local_affinity(q, k, weights, window=window, **options)

        return self._local.get((*self._settings(config), window), make)

    def global_affinity(self, config: NerveConfig) -> nk.LowRankAffinity:
        """S_global; of the config, beta and window are not used."""
        cells = self._cells(config)

        @phase(AFFINITY, "global")
        def make() -> nk.LowRankAffinity:
            found = self.statistics(config)
            if found is not None:
                return found.global_affinity(self.weights(config), backend=config.backend)
            q, k, weights, options = self._inputs(config)
            if config.global_sharpness != 1:  # other scores, and other sums of their exponentials
                q, options = [config.global_sharpness * layer for layer in q], {**options, "lse": None}
            return nk.global_affinity(q, k, weights, cells=cells, **options)

        return self._global.get((*self._settings(config), cells, config.global_sharpness), make)

    def _inputs(
        self, config: NerveConfig
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], dict[str, Any]]:
        """q, k, weights and the options that both affinities take."""
        weights = self.weights(config)
        _, lses = self.entropies(config)
        options = {"grid": self.grid, "grids": self.grids, "lse": lses, "backend": config.backend}
        return [layer.q for layer in self.layers], [layer.k for layer in self.layers], weights, options


class KeptAffinityBuilder(AffinityBuilder):
    """Builds affinities from statistics alone, as a file holds them: queries and keys are gone.

    Args:
        statistics: Of all layers, as lists.
        sharpness: What the scores of the cells were multiplied by.
    """

    def __init__(self, statistics: nk.AttentionStatistics, sharpness: float) -> None:
        self._prepare((), statistics.grids)
        self._kept, self._sharpness = statistics, sharpness

    def statistics(self, config: NerveConfig) -> nk.AttentionStatistics:
        """What was kept.

        Raises:
            ValueError: The config asks for another window, other cells, another sharpness, or weights by information,
                for which queries and keys are needed.
        """
        cells = self._cells(config) or default_cells(self._coarsest())
        asked = {
            "window": (self._window(config), self._kept.window),
            "cells": (cells, self._kept.cells),
            "global_sharpness": (config.global_sharpness, self._sharpness),
            "criterion": (config.criterion == "information", False),
        }
        for name, (wanted, there) in asked.items():
            if wanted != there:
                value = f"{getattr(config, name)!r}, but the statistics in the file"
                value += " know no marginals" if name == "criterion" else f" have {there!r}"
                raise ValueError(f"config: {name} is {value}; encode the image again with this config")
        return self._kept

    def _statistics_fit(self, config: NerveConfig) -> bool:
        return True


def _require_finite(entropies: Iterable[torch.Tensor]) -> None:
    for entropy in entropies:  # as finite as the queries and keys, and far smaller
        require_finite(entropy, DIFFUSION)


def _at_most(sides: int | tuple[int, int], limits: Sequence[int]) -> tuple[int, int]:
    first, second = _both(sides)
    return min(first, limits[0]), min(second, limits[1])


def _both(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides
