"""What all sources of attention do alike: list their layers, judge configs, take images of one size together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image

import nerve_kernels as nk
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.images import places_by_size, size_for_model, to_tensor
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.locks import alone_in

from .affinity_building import check_affinity_settings
from .layers import SelfAttentionLayer, select_layers
from .source import CapturedLayer


class ModelAttention(ABC):
    """A source of attention that runs a PyTorch model, whose queries and keys :func:`nerve_kernels.capture` takes.

    Args:
        model: the one that attends.
        unit: pixels of the image along one side of what `shrink` counts in: a latent's place, or a patch.
        multiple: pixels that the sides of what the model is given are multiples of.
    """

    def __init__(self, *, model: torch.nn.Module, unit: int, multiple: int) -> None:
        self.model = model
        self.unit = unit
        self.multiple = multiple
        self._layers: tuple[SelfAttentionLayer, ...] | None = None

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of all that its answers depend on, beside image and config."""

    @abstractmethod
    def run_smallest(self) -> int:
        """One pass on as few tokens as the model takes; the side of its input, in units."""

    @abstractmethod
    def capture_pixels(self, pixels: torch.Tensor, config: NerveConfig) -> list[CapturedLayer]:
        """The chosen layers for images (B, 3, height, width) in [0, 1], whose sides suit the model."""

    @property
    def layers(self) -> tuple[SelfAttentionLayer, ...]:
        """All self-attention layers in the order in which they run, with their grids and heads."""
        if self._layers is None:
            # One pass on the smallest image: neither order nor shrink depends on its size.
            try:
                with torch.no_grad(), alone_in(self.model), nk.capture(self.model) as attention:
                    side = self.run_smallest()
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, AttributeError, IndexError) as error:  # as of parts that do not fit
                reason = (str(error).strip().splitlines() or [repr(error)])[0]
                name = type(self.model).__name__
                raise ModelLoadError(
                    f"diffusion: this {name} cannot run with the rest of its checkpoint: {reason}"
                ) from error
            self._layers = tuple(
                SelfAttentionLayer(layer.name, max(1, side // layer.grid[0]), layer.q.shape[1])
                for layer in attention.layers
            )
        return self._layers

    def check(self, config: NerveConfig) -> None:
        """Refuse a config that this model cannot follow.

        Args:
            config: timesteps, layers, keep, window and cells are looked at.

        Raises:
            ValueError: names the field, what was expected, what came.
        """
        passes = self.check_timesteps(config.timesteps)
        side = self.image_size((1, 1), config.diffusion_size)[0] // self.unit
        layers = select_layers(self.layers, config.layers, latent_size=(side, side))
        maps = passes * sum(layer.heads for layer in layers)
        check_affinity_settings(config, maps=maps, sides=[side // layer.shrink for layer in layers])

    def check_timesteps(self, timesteps: Sequence[int]) -> int:
        """How many passes there are of an image; one, where the model knows no noise."""
        return 1

    def image_size(self, size: tuple[int, int], short_side: int) -> tuple[int, int]:
        """The size an image is resized to: same aspect ratio, as near as the model allows.

        Args:
            size: (height, width) of the image in pixels.
            short_side: wanted shorter side in pixels.

        Returns:
            (height, width), multiples of what the model needs; see
            :func:`nerve_kernels.segmentation.images.size_for_model`.
        """
        return size_for_model(size, short_side, self.multiple)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], config: NerveConfig) -> list[list[CapturedLayer]]:
        """From images to queries and keys; images of one size go through the model together.

        Args:
            images: RGB.
            config: diffusion_size, timesteps, layers and noise_seed are used.

        Returns:
            For each image the layers of the first timestep in the order in which they run, then the next.
        """
        found: list[list[CapturedLayer]] = [[] for _ in images]
        sizes = [self.image_size((image.height, image.width), config.diffusion_size) for image in images]
        for size, places in places_by_size(sizes).items():
            pixels = torch.cat([to_tensor(images[place], size) for place in places])
            for layer in self.capture_pixels(pixels, config):
                for row, place in enumerate(places):
                    found[place].append(replace(layer, q=layer.q[row : row + 1], k=layer.k[row : row + 1]))
        return found

    def capture_run(
        self, run: Callable[[], object], names: Sequence[str], *, timestep: int = 0, stop_early: bool = True
    ) -> list[CapturedLayer]:
        """Queries and keys of the named layers in one pass, which ends with the last of them.

        Args:
            run: runs one pass of the model.
            names: of layers.
            timestep: noted in the result.
            stop_early: False: run the whole pass.

        Returns:
            The layers in the order in which they ran.
        """
        with alone_in(self.model), nk.capture(self.model, names, stop_early=stop_early) as attention:
            run()
        return [CapturedLayer(layer.name, timestep, layer.scaled_q, layer.k, layer.grid) for layer in attention.layers]
