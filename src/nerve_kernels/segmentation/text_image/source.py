"""Where G comes from, whatever the model: what a family of models has to offer, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from nerve_kernels.segmentation.config import NerveConfig


@dataclass(frozen=True)
class PatchEmbeddings:
    """What is seen where.

    Args:
        values: (H*W, D) float32, row-major; unit length, or averages of such over windows.
        grid: (H, W) in patches.
    """

    values: torch.Tensor
    grid: tuple[int, int]


class TextImageSource(Protocol):
    """A model that embeds the places of an image and names in one space."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        ...

    @property
    def native_size(self) -> int:
        """The shorter side, in pixels, that it sees an image at where ``clip_size`` is None."""
        ...

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities where ``seed_scale`` is None."""
        ...

    def check(self, config: NerveConfig) -> None:
        """Refuse a config that the model cannot follow, before any image is worked on.

        Raises:
            ValueError: names the field, what was expected, what came.
        """
        ...

    def fingerprint(self) -> str:
        """A digest of all that its answers depend on, beside image, names and config: weights first of all."""
        ...

    def embed_images(self, images: Sequence[Image.Image], config: NerveConfig) -> list[PatchEmbeddings]:
        """An embedding for each place of each image.

        Of the config the fields ``CLIP_FIELDS`` are read and no others: features are shared between configs that
        agree in them.
        """
        ...

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """An embedding of each name, (names, D) float32 of unit length.

        Args:
            names: what to look for.
            templates: prompts with ``{}`` for the name.
        """
        ...
