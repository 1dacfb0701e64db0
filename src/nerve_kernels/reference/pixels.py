"""The definition of what happens to pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_kernels.grids import stencil_neighbours

from .grids import query_resampling


def best_labels(planes: Tensor, *, size: tuple[int, int], threshold: float, fallback: int) -> Tensor:
    """argmax_c of planes (B, C, h, w) brought to (H, W) bilinearly, (B, H, W); fallback where the best < threshold."""
    resampling = query_resampling((planes.shape[2], planes.shape[3]), size).to(planes.device)
    values = planes.double().flatten(2) @ resampling.transpose(0, 1)
    best, label = values.max(1)
    return torch.where(best < threshold, fallback, label).unflatten(1, size)


def rgb_to_lab(image: Tensor) -> Tensor:
    """CIELAB of sRGB (B, 3, H, W) in [0, 1] under D65, one pixel after the other."""
    result = torch.empty(image.shape, dtype=torch.float64)
    for b, y, x in itertools.product(range(image.shape[0]), range(image.shape[2]), range(image.shape[3])):
        red, green, blue = (
            ((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in image[b, :, y, x].double().tolist()
        )
        xyz = (
            (0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.95047,
            0.212671 * red + 0.715160 * green + 0.072169 * blue,
            (0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.08883,
        )
        f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz]
        lab = 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
        result[b, :, y, x] = torch.tensor(lab, dtype=torch.float64)
    return result


def pixel_affinity(
    image: Tensor,
    *,
    offsets: Sequence[tuple[int, int]],
    kind: str,
    centres: int = 1,
    tau: float = 0.01,
    sigma: float = 0.1,
    distance_sigma: float = math.inf,
    normalize: str = "row",
) -> Tensor:
    """Weights (B, N, K) of the neighbours at ``offsets``, from colours (B, channels, H, W).

    PAMR: softmax over k of the mean over channels of −|Δ| / (1e-8 + 0.1 σ), σ over the neighbours and ``centres`` times
    the pixel. LPOSS+: exp(−‖ΔLab‖/τ). Gaussian: exp(−‖Δ‖²/2σ² − r²/2σ_d²). The latter two 0 outside the image.
    """
    grid = image.shape[2], image.shape[3]
    neighbour, inside = (part.to(image.device) for part in stencil_neighbours(grid, offsets, kind == "pamr"))
    if kind == "lab":
        colours = rgb_to_lab(image.cpu()).to(image.device) / torch.tensor([100.0, 128.0, 128.0]).view(3, 1, 1)
    else:
        colours = image.double()
    pixels = colours.double().flatten(2).transpose(1, 2)
    around = pixels[:, neighbour]
    difference = around - pixels[:, :, None]
    if kind == "pamr":
        samples = torch.cat([around, pixels[:, :, None].expand(-1, -1, centres, -1)], dim=2)
        deviation = samples.std(2, keepdim=True)
        return (-difference.abs() / (1e-8 + 0.1 * deviation)).mean(-1).softmax(-1)
    if kind == "lab":
        exponent = -difference.norm(dim=-1) / tau
    else:
        steps = torch.tensor(offsets, dtype=torch.float64, device=image.device)
        exponent = -difference.square().sum(-1) / (2 * sigma**2) - steps.square().sum(-1) / (2 * distance_sigma**2)
    weights = torch.where(inside, exponent.exp(), 0)
    degree = weights.sum(-1, keepdim=True)
    degree = torch.where(degree == 0, 1, degree)
    by = {"none": torch.ones(()), "row": degree, "symmetric": (degree * degree[:, neighbour, 0]).sqrt()}[normalize]
    return weights / by.to(weights)
