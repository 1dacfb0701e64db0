"""From probabilities on the token grid to the image's pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

UNLABELLED = -1

# Bytes of probabilities at image resolution that are held at once while the best is sought.
CHUNK_BYTES = 256 * 2**20


def upsample(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring probabilities to an image's size, bilinearly.

    Args:
        planes: (C, h, w).
        size: (H, W) in pixels.

    Returns:
        (C, H, W) float32; where the planes sum to 1 at each token, they do at each pixel.

    Example:
        >>> upsample(torch.ones(2, 3, 4), (6, 5)).shape
        torch.Size([2, 6, 5])
    """
    return functional.interpolate(planes.float()[None], size=size, mode="bilinear", align_corners=False)[0]


def best_labels(
    planes: torch.Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    background: int | None = None,
) -> torch.Tensor:
    """The most probable label of each pixel.

    argmax_c of the upsampled planes, found some labels at a time: with 1,203 labels, all
    planes of a photograph at once would take gigabytes.

    Args:
        planes: (C, h, w) probabilities on the token grid.
        size: (H, W) of the image in pixels.
        threshold: pixels whose best probability is below it get `background`; in [0, 1].
        background: index of the background label; None: such pixels get -1, unlabelled.

    Returns:
        (H, W) int64 on the device of `planes`.

    Example:
        >>> best_labels(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]), (1, 2)).tolist()
        [[0, 1]]
    """
    at_once = max(1, CHUNK_BYTES // (4 * size[0] * size[1]))
    best = planes.new_full(size, -torch.inf, dtype=torch.float32)
    labels = torch.zeros(size, dtype=torch.int64, device=planes.device)
    for first in range(0, planes.shape[0], at_once):
        value, index = upsample(planes[first : first + at_once], size).max(dim=0)
        labels = torch.where(value > best, index + first, labels)
        best = torch.maximum(best, value)
    fallback = UNLABELLED if background is None else background
    return torch.where(best < threshold, fallback, labels)
