"""Cut a large image into overlapping windows and average what is seen in them."""

from __future__ import annotations

import torch


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side begin; the last one ends at the border.

    Args:
        length: of the side.
        window: of a window; one window covers everything where it is not shorter than the side.
        stride: from one start to the next, at most `window`.

    Returns:
        Starts, increasing. Every place is covered.

    Example:
        >>> window_starts(336, 224, 112), window_starts(300, 224, 112), window_starts(100, 224, 112)
        ([0, 112], [0, 76], [0])
    """
    if window >= length:
        return [0]
    return [*range(0, length - window, stride), length - window]


class OverlapAverage:
    """Mean over all windows that saw a place.

    Args:
        height, width: of the whole grid.
        channels: of the embeddings.
        device: where the sums live.

    Example:
        >>> average = OverlapAverage(1, 3, 1, torch.device("cpu"))
        >>> average.add(torch.full((1, 2, 1), 1.0), 0, 0)
        >>> average.add(torch.full((1, 2, 1), 3.0), 0, 1)
        >>> average.mean().flatten().tolist()
        [1.0, 2.0, 3.0]
    """

    def __init__(self, height: int, width: int, channels: int, device: torch.device) -> None:
        self._sum = torch.zeros(height, width, channels, device=device)
        self._count = torch.zeros(height, width, 1, device=device)

    def add(self, seen: torch.Tensor, top: int, left: int) -> None:
        """Add a window's (h, w, channels) embeddings with its upper left corner at (top, left)."""
        height, width = seen.shape[:2]
        self._sum[top : top + height, left : left + width] += seen
        self._count[top : top + height, left : left + width] += 1

    def mean(self) -> torch.Tensor:
        """(height, width, channels) float32."""
        return self._sum / self._count
