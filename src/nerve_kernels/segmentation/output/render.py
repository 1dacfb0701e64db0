"""Segmentations as images: an overlay with names and a legend, and an indexed PNG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nerve_kernels._operators.checks import refusal, shape_of
from nerve_kernels.segmentation.images import row_bands

from .legend import draw_legend
from .palette import Colour, bright_colour, voc_palette

MIN_DISPLAY_SIDE = 480
MAX_DISPLAY_SIDE = 1600
OPACITY = 0.55
MIN_NAMED_FRACTION = 0.015


def indexed_image(label_map: torch.Tensor, *, background: int | None = None, labels: int | None = None) -> Image.Image:
    """Labels as indices into the VOC palette.

    Index 0 (black) is the background or unlabelled; the other labels follow in their order.

    Args:
        label_map: (H, W) integers, -1 for unlabelled.
        background: the label that is the background, or None.
        labels: how many there are, whether or not they occur; None: as many as occur.

    Returns:
        An image of mode P; with more than 255 labels beside the background, of mode I;16 without palette.

    Example:
        >>> image = indexed_image(torch.tensor([[-1, 0, 1]]))
        >>> np.asarray(image).tolist(), image.convert("RGB").getpixel((1, 0))
        ([[0, 1, 2]], (128, 0, 0))
    """
    indices = palette_indices(label_map, background=background)
    last = indices.max(initial=0) if labels is None else labels - (background is not None)
    if last > 255:
        return Image.fromarray(indices.astype(np.uint16))
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(voc_palette())
    return image


def palette_indices(label_map: torch.Tensor, *, background: int | None = None) -> np.ndarray:
    """(H, W) int32: 0 for background and unlabelled, then 1, 2, ... for the other labels."""
    labels = label_map.cpu().numpy()
    indices = np.empty(labels.shape, dtype=np.int32)
    for rows in row_bands(*labels.shape):
        band = labels[rows]
        if background is None:
            indices[rows] = band + 1
        else:
            shifted = np.where(band < background, band + 1, band)
            indices[rows] = np.where((band < 0) | (band == background), 0, shifted)
    return indices


def render_overlay(
    image: Image.Image,
    label_map: torch.Tensor,
    labels: Sequence[str],
    *,
    background: int | None = None,
    side_by_side: bool = False,
) -> Image.Image:
    """The image with its labels coloured, outlined and named, above a legend.

    Small images are enlarged so that the names can be read; background and unlabelled
    pixels keep their own colours.

    Args:
        image: RGB.
        label_map: (H, W) integers of the image's size, -1 for unlabelled.
        labels: shown names.
        background: the label that is the background, or None.
        side_by_side: show the image as it was on the left.

    Returns:
        An RGB image.

    Raises:
        ValueError: `label_map` has another size than the image.
    """
    if tuple(label_map.shape) != (image.height, image.width):
        raise ValueError(
            refusal("label_map", f"the image's height and width {(image.height, image.width)}", shape_of(label_map))
        )
    indices = palette_indices(label_map, background=background)
    names, colours = _names_and_colours(labels, background)
    size = _display_size(image.width, image.height)
    shown, enlarged = image, indices
    if size != image.size:
        shown = image.resize(size, Image.Resampling.LANCZOS)
        # Mode I holds any number of labels; nearest, since a mean of two labels is no label.
        enlarged = np.asarray(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))
    coloured = _colour(shown, enlarged, colours)
    _name_regions(coloured, enlarged, names)
    panels = [shown, coloured] if side_by_side else [coloured]
    gap = 12
    width = sum(panel.width for panel in panels) + gap * (len(panels) - 1)
    counts = _counts(indices, len(names))
    legend = draw_legend(
        width,
        [
            (name, colour, counts[index] / indices.size)
            for index, (name, colour) in enumerate(zip(names, colours, strict=True))
            if counts[index]
        ],
    )
    canvas = Image.new("RGB", (width, shown.height + legend.height), "white")
    for position, panel in enumerate(panels):
        canvas.paste(panel, (position * (shown.width + gap), 0))
    canvas.paste(legend, (0, shown.height))
    return canvas


def _names_and_colours(labels: Sequence[str], background: int | None) -> tuple[list[str], list[Colour | None]]:
    """By palette index; None: not coloured."""
    others = [name for index, name in enumerate(labels) if index != background]
    first = "unlabelled" if background is None else labels[background]
    return [first, *others], [None, *(bright_colour(index) for index in range(len(others)))]


def _display_size(width: int, height: int) -> tuple[int, int]:
    scale = max(1.0, MIN_DISPLAY_SIDE / min(width, height))
    scale = min(scale, max(1.0, MAX_DISPLAY_SIDE / max(width, height)))
    return round(width * scale), round(height * scale)


def _counts(indices: np.ndarray, names: int) -> np.ndarray:
    """Pixels of each index."""
    counts = np.zeros(names, dtype=np.int64)
    for rows in row_bands(*indices.shape):
        counts += np.bincount(indices[rows].ravel(), minlength=names)
    return counts


def _colour(shown: Image.Image, indices: np.ndarray, colours: Sequence[Colour | None]) -> Image.Image:
    table = np.array([colour or (0, 0, 0) for colour in colours], dtype=np.float32)
    strength = np.array([OPACITY if colour else 0.0 for colour in colours], dtype=np.float32)
    coloured = Image.new("RGB", shown.size)
    for rows in row_bands(*indices.shape):
        band = indices[rows]
        part = shown.crop((0, rows.start, shown.width, rows.stop))
        alpha = strength[band][..., None]
        # Under a label the image is grey: on a red thing, green would look brown, not as in the legend.
        grey = np.asarray(part.convert("L"), dtype=np.float32)[..., None]
        blended = np.where(alpha > 0, grey * (1 - alpha) + table[band] * alpha, np.asarray(part, dtype=np.float32))
        blended[_outline(indices, rows)] = 255.0
        coloured.paste(Image.fromarray(blended.round().astype(np.uint8)), (0, rows.start))
    return coloured


def _outline(indices: np.ndarray, rows: slice) -> np.ndarray:
    """Where a pixel of these rows has another index than one beside, above or below it."""
    above = min(1, rows.start)
    near = indices[rows.start - above : rows.stop + 1]
    edge = np.zeros(near.shape, dtype=bool)
    down = near[1:] != near[:-1]
    right = near[:, 1:] != near[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge[above : above + rows.stop - rows.start]


def _name_regions(coloured: Image.Image, indices: np.ndarray, names: Sequence[str]) -> None:
    draw = ImageDraw.Draw(coloured)
    font = ImageFont.load_default(max(18, min(coloured.size) // 22))
    counts = _counts(indices, len(names))
    for index in np.flatnonzero(counts / indices.size >= MIN_NAMED_FRACTION).tolist():
        if index == 0:
            continue
        x, y = _innermost(indices == index)
        left, top, right, bottom = draw.textbbox((x, y), names[index], font=font, anchor="mm")
        # Keep the whole name within the image where it fits at all.
        x += max(0, 4 - left) - max(0, right + 4 - coloured.width)
        y += max(0, 4 - top) - max(0, bottom + 4 - coloured.height)
        draw.text((x, y), names[index], "white", font, anchor="mm", stroke_width=2, stroke_fill="black")


def _innermost(inside: np.ndarray) -> tuple[float, float]:
    """A pixel far from the region's border: what is left last when the border is worn away."""
    height, width = inside.shape
    scale = max(1, max(inside.shape) // 96)
    small = inside[scale // 2 :: scale, scale // 2 :: scale]
    if not small.any():
        rows, columns = np.nonzero(inside)
        return float(columns[len(columns) // 2]), float(rows[len(rows) // 2])
    # A frame of zeros, so that the image's border counts as the region's border too.
    worn = Image.fromarray(np.pad(small, 1).astype(np.uint8) * 255)
    while True:
        smaller = worn.filter(ImageFilter.MinFilter(3))
        if smaller.getbbox() is None:
            break
        worn = smaller
    rows, columns = np.nonzero(np.asarray(worn))
    middle = len(rows) // 2
    return (
        min(width - 1.0, (columns[middle] - 0.5) * scale),
        min(height - 1.0, (rows[middle] - 0.5) * scale),
    )
