"""One image and all that was computed about it: each phase runs again only when what it depends on has changed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from PIL import Image

import nerve_kernels as nk
from nerve_kernels.grids import Grid
from nerve_kernels.segmentation import ImageFeatures
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.output.upsampling import best_labels
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.result import Segmentation
from nerve_kernels.segmentation.seeds import resize_seeds

from .affinity_rows import affinity_row

T = TypeVar("T")

FEATURES = "Stable Diffusion and CLIP look at the image"
SEEDS = "CLIP compares patches with words"
LOCAL = "local affinity"
GLOBAL = "global affinity"
WALK = "random walk"
DRAWING = "drawing"


@dataclass(frozen=True, eq=False)
class Drawn:
    """A segmentation and its overlay."""

    segmentation: Segmentation
    overlay: Image.Image


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the page shows of one run.

    Args:
        before: what CLIP says alone.
        after: what the walk makes of it.
        seconds: the phases that ran, in order, and how long each took; the others were still known.
    """

    before: Drawn
    after: Drawn
    seconds: dict[str, float]


@dataclass(frozen=True)
class HeadWeight:
    """One attention head: its weight in the fused map, and its mean entropy as a share of the largest possible."""

    layer: str
    timestep: int
    head: int
    weight: float
    entropy: float


@dataclass(frozen=True, eq=False)
class TokenRows:
    """One token's row of S on the token grid, (H, W) each; the mixture is β · global + (1 − β) · local."""

    token: tuple[int, int]
    local: torch.Tensor
    coarse: torch.Tensor
    mixed: torch.Tensor


class Kept(Generic[T]):
    """The latest few results of a phase.

    Not ``lru_cache`` on a bound method: that holds the object which holds it, and such a cycle of tensors lives until
    the garbage collector looks for it, which it does by the number of objects and not by their size.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._results: OrderedDict[tuple[Hashable, ...], T] = OrderedDict()

    def get(self, arguments: tuple[Hashable, ...], make: Callable[..., T]) -> T:
        """What `make` returned for these arguments, or returns now."""
        if arguments not in self._results:
            made = make(*arguments)
            while len(self._results) >= self._most:
                self._results.popitem(last=False)
            self._results[arguments] = made
        self._results.move_to_end(arguments)
        return self._results[arguments]


class OpenedImage:
    """An image with what is known about it. Not for several threads at a time.

    Args:
        pipeline: gives the pipeline once it is there, or raises; its config says everything that the page has no
            slider for.
        image: upright RGB.
    """

    def __init__(self, pipeline: Callable[[], NervePipeline], image: Image.Image) -> None:
        self.image = image
        self._pipeline = pipeline
        self._seconds: dict[str, float] = {}
        # The latest few are kept, so that a slider may go back and forth.
        self._kept_features: Kept[ImageFeatures] = Kept(1)
        self._kept_seeds: Kept[Drawn] = Kept(2)
        self._kept_parts: Kept[object] = Kept(8)
        self._kept_walks: Kept[Drawn] = Kept(2)

    @torch.no_grad()
    def segment(self, labels: str, config: NerveConfig) -> Outcome:
        """Segment by words; runs what changed since the last calls.

        Args:
            labels: as the pipeline takes them.
            config: may differ from the pipeline's in temperature, window, beta, alpha and steps.

        Raises:
            ValueError, TypeError: labels or settings that cannot be used.
        """
        self._seconds = {}
        before = self._seeds(labels)
        return Outcome(before, self._walked(labels, config), dict(self._seconds))

    @torch.no_grad()
    def rows(self, point: tuple[float, float], config: NerveConfig) -> TokenRows:
        """The row of S of the token under a point (x, y), which is in pixels and may lie within one."""
        grid = self._grid()
        x, y = point
        token = (
            min(grid[0] - 1, max(0, int(y * grid[0] / self.image.height))),
            min(grid[1] - 1, max(0, int(x * grid[1] / self.image.width))),
        )
        local, coarse = (
            affinity_row(part, token[0] * grid[1] + token[1]).view(grid).float().cpu()
            for part in (self._local(config), self._global(config))
        )
        return TokenRows(token, local, coarse, config.beta * coarse + (1 - config.beta) * local)

    @torch.no_grad()
    def head_weights(self, config: NerveConfig) -> list[HeadWeight]:
        """Every head of every layer, in the models' order."""
        builder = self._features().builder
        assert builder is not None
        entropies, _ = builder.entropies(config.backend)
        found = []
        for layer, weights, entropy in zip(builder.layers, builder.weights(config), entropies, strict=True):
            largest = torch.tensor(float(layer.k.shape[2])).log().clamp(min=1e-9)
            for head, (weight, mean) in enumerate(
                zip(weights[0].tolist(), (entropy[0].mean(-1).cpu() / largest).tolist(), strict=True)
            ):
                found.append(HeadWeight(layer.name, layer.timestep, head, weight, mean))
        return found

    def _grid(self) -> Grid:
        grid = self._features().grid
        assert grid is not None  # it is encoded with the walk on
        return grid

    def _base(self) -> NerveConfig:
        return self._pipeline().config.replace(walk=True)

    def _local(self, config: NerveConfig) -> nk.LocalAffinity:
        part = self._part(self._base().replace(temperature=config.temperature, window=config.window, beta=0.0))
        assert isinstance(part, nk.LocalAffinity)
        return part

    def _global(self, config: NerveConfig) -> nk.LowRankAffinity:
        part = self._part(self._base().replace(temperature=config.temperature, beta=1.0))
        assert isinstance(part, nk.LowRankAffinity)
        return part

    def _affinity(self, config: NerveConfig) -> nk.LocalAffinity | nk.LowRankAffinity | nk.MixedAffinity:
        if config.beta == 0.0:
            return self._local(config)
        if config.beta == 1.0:
            return self._global(config)
        return nk.mix(self._global(config), self._local(config), beta=config.beta)

    # ---- the phases, and what is kept of each by what it depends on ----------------------------------------------

    def _features(self) -> ImageFeatures:
        return self._kept_features.get((), self._encode)

    def _seeds(self, labels: str) -> Drawn:
        return self._kept_seeds.get((labels,), self._compare_with_words)

    def _part(self, config: NerveConfig) -> object:
        return self._kept_parts.get((config,), self._build_part)

    def _walked(self, labels: str, config: NerveConfig) -> Drawn:
        return self._kept_walks.get((labels, config), self._walk)

    def _encode(self) -> ImageFeatures:
        with self._timed(FEATURES):
            return self._pipeline().encode(self.image, config=self._base())

    def _compare_with_words(self, labels: str) -> Drawn:
        features = self._features()
        with self._timed(SEEDS):
            result = self._pipeline().segment(features, labels, config=self._base().replace(walk=False))
        with self._timed(DRAWING):
            return Drawn(result, result.overlay())

    def _build_part(self, config: NerveConfig) -> object:
        builder = self._features().builder
        assert builder is not None
        with self._timed(LOCAL if config.beta == 0.0 else GLOBAL):
            return builder.build(config)

    def _walk(self, labels: str, config: NerveConfig) -> Drawn:
        before = self._seeds(labels).segmentation
        affinity = self._affinity(config)
        grid = self._grid()
        with self._timed(WALK):
            planes = before.token_probabilities
            rows = planes.flatten(1).T.to(affinity.device)
            seeds = resize_seeds(rows, (planes.shape[1], planes.shape[2]), grid)
            walked = nk.random_walk(seeds, affinity, alpha=config.alpha, steps=config.steps, backend=config.backend)
            planes = walked.T.reshape(-1, *grid)
            label_map = best_labels(
                planes,
                (self.image.height, self.image.width),
                threshold=config.probability_threshold,
                background=before.background,
                backend=config.backend,
            )
        result = Segmentation(self.image, before.labels, label_map.cpu(), planes.cpu(), before.background)
        with self._timed(DRAWING):
            return Drawn(result, result.overlay())

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start
