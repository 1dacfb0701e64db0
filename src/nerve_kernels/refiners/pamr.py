"""PAMR: masks averaged over pixels of similar colour, again and again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerve_kernels._operators.checks import (
    check_backend,
    check_batch,
    check_count,
    check_list,
    check_same_device,
    check_tensor,
    refusal,
    shape_of,
)
from nerve_kernels.affinity import pixel_affinity
from nerve_kernels.walk import random_walk

from .memory import refuse_beyond_memory

BLOCK_BYTES = 1 << 26
"""Of the labels that are refined together, at the picture's size in float32: the walk holds a few buffers of them."""
WALK_BUFFERS = 5
NEIGHBOURS = 8


class PAMR(nn.Module):
    """Pixel-adaptive mask refinement; stands in for the class of the same name that seven code bases carry.

    ``m_i ← Σ_j w_ij m_j``, ``num_iter`` times, over the 8 neighbours j of pixel i at every dilation, the edge repeated;
    ``w_i = softmax_j(mean over channels of −|x_i − x_j| / (1e-8 + 0.1 σ_i))``, σ_i the unbiased standard deviation of
    a channel over the 9·D samples around i (i itself once a dilation). A walk without restart (α = 1) on
    :func:`~nerve_kernels.pixel_affinity`.

    Args:
        num_iter: Iterations ≥ 0.
        dilations: Ints ≥ 1; 10 iterations over (8, 16) are the setting of NACLIP, Trident, CASS and SC-CLIP.
        backend: ``None`` chooses; a named backend runs or raises.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: Araslanov and Roth, Single-stage semantic segmentation from image labels, CVPR 2020. The paper divides by
        σ_i²; the public module by 1e-8 + 0.1 σ_i, as here. It holds 8·D copies of every mask; where these do not fit on
        the GPU, three of the code bases catch the error and go on with masks that were not refined. Here labels are
        taken in blocks, and what cannot fit is refused before any work.

    Example:
        >>> import torch
        >>> from nerve_kernels.refiners import PAMR
        >>> image = torch.zeros(1, 3, 8, 12)
        >>> image[..., 6:] = 1.0
        >>> mask = torch.zeros(1, 2, 4, 6)
        >>> mask[:, 0, :, :3] = 1.0
        >>> PAMR(num_iter=5, dilations=[1, 2])(image, mask).shape
        torch.Size([1, 2, 8, 12])
    """

    def __init__(self, num_iter: int = 1, dilations: Sequence[int] = (1,), *, backend: str | None = None) -> None:
        super().__init__()
        check_backend(backend)
        self.num_iter = check_count("num_iter", num_iter)
        self.dilations = tuple(check_list("dilations", dilations, "a list of ints ≥ 1"))
        if not self.dilations:
            raise ValueError(refusal("dilations", "at least one", "an empty list"))
        for dilation in self.dilations:
            check_count("dilations", dilation, low=1)
        self.backend = backend

    def extra_repr(self) -> str:
        """The settings."""
        return f"num_iter={self.num_iter}, dilations={self.dilations}"

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """The mask (B, C, h, w), brought to the picture's size with ``align_corners=True``, refined: (B, C, H, W).

        Args:
            image: (B, channels, H, W) in any units: only their ratio to the local deviation counts.
            mask: (B, C, h, w), real numbers.

        Returns:
            In the dtype of ``mask``.

        Raises:
            TypeError, ValueError: for a bad argument, named.
            MemoryError: before work starts, with the bytes that it would take.
        """
        check_tensor("image", image, 4, "(B, channels, H, W)")
        check_tensor("mask", mask, 4, "(B, C, h, w)")
        check_same_device(image=image, mask=mask)
        check_batch("image", image.shape[0], mask.shape[0], " as mask has")
        for name, tensor in (("image", image), ("mask", mask)):
            if 0 in tensor.shape[1:]:
                raise ValueError(refusal(name, "at least one channel and one pixel", shape_of(tensor)))
        return walk_over_colours(
            image, mask, dilations=self.dilations, alpha=1.0, steps=self.num_iter, backend=self.backend
        )


def walk_over_colours(
    image: Tensor, mask: Tensor, *, dilations: Sequence[int], alpha: float, steps: int, backend: str | None = None
) -> Tensor:
    """PAMR's walk, with restart where α < 1, from a mask brought to the picture's size: (B, C, H, W).

    Raises:
        MemoryError: before work starts, with the bytes that it would take.
    """
    batch, labels = mask.shape[:2]
    height, width = image.shape[2:]
    numbers = 4 if mask.dtype != torch.float64 else 8
    plane = numbers * batch * height * width
    together = min(labels, max(1, BLOCK_BYTES // max(1, plane)))
    weights = 2 * NEIGHBOURS * len(dilations) * numbers * len(image) * height * width
    needed = weights + plane * (labels + WALK_BUFFERS * together)
    refuse_beyond_memory("image", needed, image.device, "give a smaller one")

    S = pixel_affinity(image, window=3, dilations=tuple(dilations), kind="pamr", backend=backend)
    refined = mask.new_empty((batch, labels, height, width))
    for first in range(0, labels, together):
        block = mask[:, first : first + together]
        wide = block if block.dtype.itemsize >= 4 else block.float()
        wide = functional.interpolate(wide, size=(height, width), mode="bilinear", align_corners=True)
        columns = wide.flatten(2).transpose(1, 2)
        walked = random_walk(columns, S, alpha=alpha, steps=steps, normalize=False, backend=backend)
        refined[:, first : first + together] = walked.transpose(1, 2).unflatten(2, (height, width))
    return refined
