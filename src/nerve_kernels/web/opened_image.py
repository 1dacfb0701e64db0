"""One image and all that was computed about it: each phase runs again only when what it depends on has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from nerve_kernels.segmentation import ImageFeatures
from nerve_kernels.segmentation.attention.affinity_building import AffinityBuilder
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.kept import Kept
from nerve_kernels.segmentation.phases import phase, recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.result import Segmentation
from nerve_kernels.segmentation.seeds import Seeds

from .affinity_rows import affinity_row

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
    local_row: torch.Tensor
    global_row: torch.Tensor
    mixed_row: torch.Tensor


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
        # The latest few are kept, so that a slider may go back and forth.
        self._kept_features: Kept[ImageFeatures] = Kept(1)
        self._kept_seeds: Kept[Seeds] = Kept(2)
        self._kept_drawn: Kept[Drawn] = Kept(4)

    @torch.no_grad()
    def segment(self, labels: str, config: NerveConfig) -> Outcome:
        """Segment by words; runs what changed since the last calls.

        Args:
            labels: as the pipeline takes them.
            config: may differ from the pipeline's in temperature, window, beta, alpha and steps.

        Raises:
            ValueError, TypeError: labels or settings that cannot be used.
        """
        with recording_phases() as phases:
            before = self._drawn(labels, self._base().replace(walk=False))
            after = self._drawn(labels, config)
        seconds: dict[str, float] = {}
        for one in phases:
            name = f"{one.part} {one.name}".strip().replace(", ", " on the ")  # "CLIP, words": commas come between
            seconds[name] = seconds.get(name, 0.0) + one.seconds
        return Outcome(before, after, seconds)

    @torch.no_grad()
    def rows(self, point: tuple[float, float], config: NerveConfig) -> TokenRows:
        """The row of S of the token under a point (x, y), which is in pixels and may lie within one."""
        grid = self._builder().grid
        x, y = point
        token = (
            min(grid[0] - 1, max(0, int(y * grid[0] / self.image.height))),
            min(grid[1] - 1, max(0, int(x * grid[1] / self.image.width))),
        )
        builder = self._builder()
        local_row, global_row = (
            affinity_row(part, token[0] * grid[1] + token[1]).view(grid).float().cpu()
            for part in (builder.local_affinity(config), builder.global_affinity(config))
        )
        return TokenRows(token, local_row, global_row, config.beta * global_row + (1 - config.beta) * local_row)

    @torch.no_grad()
    def head_weights(self, config: NerveConfig) -> list[HeadWeight]:
        """Every head of every layer, in the models' order."""
        builder = self._builder()
        entropies, _ = builder.entropies(config)
        found = []
        for layer, weights, entropy in zip(builder.layers, builder.weights(config), entropies, strict=True):
            largest = torch.tensor(float(layer.k.shape[2])).log().clamp(min=1e-9)
            for head, (weight, mean) in enumerate(
                zip(weights[0].tolist(), (entropy[0].mean(-1).cpu() / largest).tolist(), strict=True)
            ):
                found.append(HeadWeight(layer.name, layer.timestep, head, weight, mean))
        return found

    def _base(self) -> NerveConfig:
        return self._pipeline().config.replace(walk=True)

    def _features(self) -> ImageFeatures:
        return self._kept_features.get((), lambda: self._pipeline().encode(self.image, config=self._base()))

    def _builder(self) -> AffinityBuilder:
        builder = self._features().builder
        assert builder is not None  # it is encoded with the walk on
        return builder

    def _seeds(self, labels: str) -> Seeds:
        return self._kept_seeds.get(
            labels, lambda: self._pipeline().seeds(self._features(), labels, config=self._base())
        )

    def _drawn(self, labels: str, config: NerveConfig) -> Drawn:
        def draw() -> Drawn:
            result = self._pipeline().segment_from(self._features(), self._seeds(labels), config=config)
            with phase(DRAWING):
                return Drawn(result, result.overlay())

        return self._kept_drawn.get((labels, config), draw)
