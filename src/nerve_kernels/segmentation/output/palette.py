"""Colours of labels: the VOC palette for files, a brighter one for eyes."""

from __future__ import annotations

import colorsys

from nerve_kernels._operators.checks import refusal

Colour = tuple[int, int, int]

# Eleven colours that stay apart when laid over a photograph; further ones are computed.
_BRIGHT: tuple[Colour, ...] = (
    (230, 57, 70),
    (29, 145, 234),
    (255, 183, 3),
    (46, 176, 97),
    (155, 93, 229),
    (251, 133, 0),
    (0, 187, 183),
    (241, 91, 181),
    (141, 110, 72),
    (164, 206, 57),
    (72, 92, 199),
)


def voc_colour(index: int) -> Colour:
    """Colour of an index in the palette of PASCAL VOC, by its bit rule.

    Bits 0, 1, 2 of the index are the highest bits of red, green, blue; bits 3, 4, 5 the
    next; and so on.

    Args:
        index: 0 .. 255; 0 is black.

    Returns:
        (red, green, blue), each 0 .. 255.

    Raises:
        ValueError: an index outside the palette.

    Example:
        >>> voc_colour(0), voc_colour(1), voc_colour(15)
        ((0, 0, 0), (128, 0, 0), (192, 128, 128))
    """
    if not 0 <= index <= 255:
        raise ValueError(refusal("index", "0 .. 255", index))
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            bit = index >> (3 * place + channel) & 1
            channels[channel] |= bit << (7 - place)
    return channels[0], channels[1], channels[2]


def voc_palette() -> list[int]:
    """All 256 colours, flat, as ``PIL.Image.putpalette`` wants them."""
    return [channel for index in range(256) for channel in voc_colour(index)]


def bright_colour(index: int) -> Colour:
    """A colour for label number `index` (from 0) that is told apart on a photograph.

    Example:
        >>> bright_colour(0)
        (230, 57, 70)
    """
    if index < len(_BRIGHT):
        return _BRIGHT[index]
    further = index - len(_BRIGHT)
    hue = (0.08 + further * 0.618033988749895) % 1.0  # golden ratio: never near the last ones
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[further % 2], (0.95, 0.75)[further // 2 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)
