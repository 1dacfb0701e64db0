"""Where S comes from, whatever the model: what a family of models has to offer, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from nerve_kernels.segmentation.config import NerveConfig

from .layers import SelfAttentionLayer


@dataclass(frozen=True)
class CapturedLayer:
    """Queries and keys of one self-attention layer in one pass.

    Args:
        name: the module's name.
        timestep: the noise level of the pass.
        q: queries (B, heads, N, d), a view of what the model computed.
        k: keys (B, heads, N, d), likewise.
        grid: (H, W) with H * W = N, row-major.
    """

    name: str
    timestep: int
    q: torch.Tensor
    k: torch.Tensor
    grid: tuple[int, int]


class AttentionSource(Protocol):
    """A model whose self-attention says which parts of an image belong together."""

    @property
    def layers(self) -> Sequence[SelfAttentionLayer]:
        """All of its self-attention layers, in the order in which they run."""
        ...

    def check(self, config: NerveConfig) -> None:
        """Refuse a config that the model cannot follow, before any image is worked on.

        Raises:
            ValueError: names the field, what was expected, what came.
        """
        ...

    def fingerprint(self) -> str:
        """A digest of all that its answers depend on, beside image and config: weights first of all."""
        ...

    def __call__(self, images: Sequence[Image.Image], config: NerveConfig) -> list[list[CapturedLayer]]:
        """Queries and keys of the layers that the config names, for each image; each with a batch of one.

        Of the config the fields ``DIFFUSION_FIELDS`` are read and no others: features are shared between configs
        that agree in them.
        """
        ...
