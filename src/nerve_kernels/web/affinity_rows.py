"""Rows of S as images: whom does a token listen to, and how much."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from nerve_kernels.affinity import LocalAffinity, LowRankAffinity
from nerve_kernels.grids import cell_of_token, window_neighbours

MIN_SIDE = 256


def affinity_row(affinity: LocalAffinity | LowRankAffinity, token: int) -> torch.Tensor:
    """One row of an affinity, without the N × N matrix.

    Args:
        affinity: of batch size 1; a low-rank one averages over cells.
        token: its index, y · W + x.

    Returns:
        (N,), non-negative; sums to 1 where the affinity is row-stochastic.

    Example:
        >>> import nerve_kernels as nk
        >>> S = nk.LocalAffinity.from_dense(torch.ones(1, 4, 4), grid=(1, 4), window=(1, 3))
        >>> affinity_row(S, 0).tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    if isinstance(affinity, LocalAffinity):
        neighbour, inside = window_neighbours(affinity.grid, affinity.window, affinity.device)
        row = affinity.values.new_zeros(affinity.shape[1])
        kept = inside[token]
        row[neighbour[token][kept]] = affinity.values[0, token][kept]
        return row
    if affinity.cells is None:
        raise ValueError("affinity: expected one that averages over cells, got explicit factors")
    cell = cell_of_token(affinity.grid, affinity.cells, affinity.device)
    share = affinity.u[0, token] / torch.bincount(cell, minlength=affinity.u.shape[2])
    return share[cell]


def draw_row(row: torch.Tensor, token: tuple[int, int], image: Image.Image) -> Image.Image:
    """A row of S as a heat map over the darkened image, with a ring around the token.

    Brightness is the square root of the weight over the largest weight: the token's own weight would outshine
    everything otherwise.

    Args:
        row: (H, W), non-negative.
        token: (y, x).
        image: RGB.

    Returns:
        RGB, in the image's aspect ratio.

    Example:
        >>> draw_row(torch.eye(4), (0, 0), Image.new("RGB", (40, 20))).size
        (512, 256)
    """
    from matplotlib import colormaps

    scale = MIN_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    strength = (row / row.max().clamp(min=1e-12)).sqrt()
    heat = Image.fromarray((colormaps["inferno"](strength.numpy())[..., :3] * 255).astype("uint8"))
    heat = heat.resize(size, Image.Resampling.NEAREST)
    shown = Image.blend(image.resize(size, Image.Resampling.LANCZOS).convert("L").convert("RGB"), heat, 0.75)
    height, width = row.shape
    x, y = ((token[1] + 0.5) * size[0] / width, (token[0] + 0.5) * size[1] / height)
    draw = ImageDraw.Draw(shown)
    for radius, colour in ((9, "black"), (8, "white"), (6, "black")):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    return shown
