"""Colours in which distances are about as large as they look."""

from __future__ import annotations

import torch
from torch import Tensor

RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""From linear sRGB, as scikit-image and kornia have them."""
WHITE = (0.95047, 1.0, 1.08883)
"""X, Y and Z of D65 for the 2° observer."""


def rgb_to_lab(image: Tensor) -> Tensor:
    """CIELAB of sRGB, white point D65.

    ``L = 116 f(Y) − 16;  a = 500 (f(X) − f(Y));  b = 200 (f(Y) − f(Z))`` of linear X, Y, Z relative to white, with
    ``f(t) = t^⅓``, and ``7.787 t + 16/116`` up to t = 0.008856.

    Args:
        image: (B, 3, H, W), sRGB in [0, 1]; float32 or float64.

    Returns:
        (B, 3, H, W): L in [0, 100], a and b about in [−128, 128].

    Source: CIE 15; IEC 61966-2-1.

    Example:
        >>> import torch
        >>> from nerve_kernels.colours import rgb_to_lab
        >>> [round(x) for x in rgb_to_lab(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).flatten().tolist()]
        [53, 80, 67]
    """
    curved = ((image.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    linear = torch.where(image > 0.04045, curved, image / 12.92)
    matrix, white = (torch.tensor(numbers, dtype=image.dtype, device=image.device) for numbers in (RGB_TO_XYZ, WHITE))
    xyz = torch.einsum("xc,bchw->bxhw", matrix / white[:, None], linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
