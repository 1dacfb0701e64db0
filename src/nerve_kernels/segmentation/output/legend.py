"""The line of colours and names below an overlay."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .palette import Colour

FONT_SIZE = 17
MARGIN = 12
SWATCH = 18
LINE_HEIGHT = 28
MAX_ENTRIES = 40


def draw_legend(width: int, entries: Sequence[tuple[str, Colour | None, float]]) -> Image.Image:
    """Colour, name and share of each label, wrapped to a width.

    Args:
        width: of the strip in pixels.
        entries: (name, colour or None where nothing is coloured, fraction of the image in
            [0, 1]); the largest are shown first, and at most forty.

    Returns:
        An RGB image of that width, as high as needed.

    Example:
        >>> draw_legend(300, [("cat", (255, 0, 0), 0.25)]).size
        (300, 52)
    """
    font = ImageFont.load_default(FONT_SIZE)
    ordered = sorted(entries, key=lambda entry: -entry[2])
    texts = [f"{name}  {_percent(fraction)}" for name, _, fraction in ordered[:MAX_ENTRIES]]
    colours: list[Colour | None] = [colour for _, colour, _ in ordered[:MAX_ENTRIES]]
    if len(ordered) > MAX_ENTRIES:
        texts.append(f"and {len(ordered) - MAX_ENTRIES} more")
        colours.append(None)
    room = width - 2 * MARGIN - SWATCH - 8
    texts = [_shorten(text, font, room) for text in texts]
    places: list[tuple[int, int]] = []
    x, line = MARGIN, 0
    for text in texts:
        wide = SWATCH + 8 + round(font.getlength(text))
        if x > MARGIN and x + wide > width - MARGIN:
            x, line = MARGIN, line + 1
        places.append((x, MARGIN + line * LINE_HEIGHT))
        x += wide + 24
    legend = Image.new("RGB", (width, 2 * MARGIN + (line + 1) * LINE_HEIGHT), "white")
    draw = ImageDraw.Draw(legend)
    for text, colour, (left, top) in zip(texts, colours, places, strict=True):
        box = (left, top + 4, left + SWATCH, top + 4 + SWATCH)
        draw.rounded_rectangle(box, 4, fill=colour, outline=colour or (150, 150, 150), width=2)
        middle = (left + SWATCH + 8, top + 4 + SWATCH / 2)
        draw.text(middle, text, (30, 30, 30), font, anchor="lm")
    return legend


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction >= 0.01 else "< 1 %"


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while len(text) > 1 and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
