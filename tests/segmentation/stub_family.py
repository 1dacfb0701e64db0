"""A family of models as whoever adds one would write it: no weights, colours for meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from nerve_kernels.segmentation import NerveConfig
from nerve_kernels.segmentation.attention.layers import SelfAttentionLayer
from nerve_kernels.segmentation.attention.source import CapturedLayer
from nerve_kernels.segmentation.images import to_tensor
from nerve_kernels.segmentation.text_image.source import PatchEmbeddings

COLOURS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SIDE = 16


def colours_of(image: Image.Image) -> torch.Tensor:
    """(SIDE*SIDE, 3) of unit length."""
    return torch.nn.functional.normalize(to_tensor(image, (SIDE, SIDE))[0].flatten(1).T, dim=1)


class ColourAttention:
    """Tokens attend to tokens of their own colour."""

    layers = (SelfAttentionLayer("colour", 1),)

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> ColourAttention:
        assert source == "colours"
        return cls()

    def check(self, config: NerveConfig) -> None:
        if config.timesteps != (0,):
            raise ValueError("timesteps: expected (0,): colours have no noise")

    def fingerprint(self) -> str:
        return "colours-1"

    def __call__(self, images: Sequence[Image.Image], config: NerveConfig) -> list[list[CapturedLayer]]:
        tokens = [8.0 * colours_of(image)[None, None] for image in images]
        return [[CapturedLayer("colour", 0, one, one, (SIDE, SIDE))] for one in tokens]


class ColourNames:
    """Names of colours are their colours."""

    device = torch.device("cpu")
    dtype = torch.float32
    native_size = SIDE
    logit_scale = 10.0

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> ColourNames:
        assert source == "names of colours"
        return cls()

    def check(self, config: NerveConfig) -> None:
        pass

    def fingerprint(self) -> str:
        return "colour-names-1"

    def embed_images(self, images: Sequence[Image.Image], config: NerveConfig) -> list[PatchEmbeddings]:
        return [PatchEmbeddings(colours_of(image), (SIDE, SIDE)) for image in images]

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        return torch.tensor([COLOURS[name] for name in names])
