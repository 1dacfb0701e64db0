"""From probabilities on the token grid to the image's pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from nerve_kernels._operators import pixels as operators

UNLABELLED = -1


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
    # contiguous: torch rounds differently where it finds labels side by side, and best_labels rounds as here
    contiguous = planes.float().contiguous()[None]
    return functional.interpolate(contiguous, size=size, mode="bilinear", align_corners=False)[0]


def best_labels(
    planes: torch.Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    background: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """The most probable label of each pixel.

    argmax_c of the upsampled planes, the first of several; found without upsampled planes, which for a large
    photograph and many labels would take gigabytes.

    Args:
        planes: (C, h, w) probabilities on the token grid.
        size: (H, W) of the image in pixels.
        threshold: pixels whose best probability is below it get `background`; in [0, 1].
        background: index of the background label; None: such pixels get -1, unlabelled.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        (H, W) int64 on the device of `planes`.

    Example:
        >>> best_labels(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]), (1, 2)).tolist()
        [[0, 1]]
    """
    fallback = UNLABELLED if background is None else background
    labels: torch.Tensor = operators.best_labels(planes.float()[None], *size, threshold, fallback, backend)
    return labels[0]
