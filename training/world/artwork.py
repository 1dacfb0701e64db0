"""Openly licensed emoji artwork: fetched with `npm pack`, rasterised once into RGBA sprites.

`npm pack` only downloads an archive; no install script of any package ever runs.
"""

import io
import json
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from training.paths import ARCHIVES, CONTACT_SHEETS, SPRITES
from training.world.vocabulary import NOUNS, STYLES, Style

SPRITE_SIDE = 112

#: (style, noun) -> drawings, the one for evaluation first; each RGBA, trimmed to its visible part.
Sprites = dict[tuple[str, str], list[Image.Image]]


def fetch_icons(style: Style, folder: Path = ARCHIVES) -> dict[str, dict[str, object]]:
    """The icon set of one style: name -> {"body", "width", "height"}, aliases resolved."""
    folder.mkdir(parents=True, exist_ok=True)
    scope_and_name, version = style.package.rsplit("@", 1)
    archive = folder / f"{scope_and_name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", "--silent", "--ignore-scripts", style.package],
            cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    with tarfile.open(archive) as content:
        member = content.extractfile("package/icons.json")
        if member is None:
            raise FileNotFoundError(f"{archive.name} holds no package/icons.json")
        document = json.load(member)
    width, height = document.get("width", 16), document.get("height", 16)
    icons = {
        name: {
            "body": icon["body"],
            "width": icon.get("width", width),
            "height": icon.get("height", height),
        }
        for name, icon in document["icons"].items()
    }
    for name, alias in document.get("aliases", {}).items():
        # An alias with a rotation or a flip is a different image: left out.
        if set(alias) == {"parent"} and alias["parent"] in icons:
            icons[name] = icons[alias["parent"]]
    return icons


def rasterise(icon: dict[str, object], side: int = SPRITE_SIDE) -> Image.Image:
    """One icon as RGBA, trimmed to its visible part, its longer side `side` pixels."""
    import cairosvg  # type: ignore[import-untyped]

    width, height = icon["width"], icon["height"]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )
    png = cairosvg.svg2png(bytestring=svg.encode(), output_width=side * 2, output_height=side * 2)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox()
    if box is None:
        raise ValueError("the icon draws nothing")
    image = image.crop(box)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def render_all_sprites() -> Sprites:
    """Every drawing of every noun in every style that has it."""
    sprites: Sprites = defaultdict(list)
    for style in STYLES:
        icons = fetch_icons(style)
        for noun, names in NOUNS.items():
            for name in names:
                # One of the sets spells its names without hyphens.
                icon = icons.get(name) or icons.get(name.replace("-", ""))
                if icon is not None:
                    sprites[style.name, noun].append(rasterise(icon))
    return dict(sprites)


def save_sprites(sprites: Sprites, path: Path = SPRITES) -> None:
    """Keep the rasterised sprites in one archive, so that SVG is read only once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        f"{style}|{noun}|{index}": np.asarray(drawing)
        for (style, noun), drawings in sprites.items()
        for index, drawing in enumerate(drawings)
    }
    np.savez_compressed(path, **arrays)


def load_sprites(path: Path = SPRITES) -> Sprites:
    """The sprites that `save_sprites` kept."""
    sprites: Sprites = defaultdict(list)
    with np.load(path) as arrays:
        for key in arrays.files:
            style, noun, _ = key.split("|")
            sprites[style, noun].append(Image.fromarray(arrays[key], "RGBA"))
    return dict(sprites)


def contact_sheet(sprites: Sprites, styles: list[str], first: int, last: int) -> Image.Image:
    """A table for the eye: a row per style, a column per noun, all drawings side by side."""
    nouns = list(NOUNS)[first:last]
    cell = 64
    sheet = Image.new("RGBA", (cell * len(nouns), cell * len(styles)), (200, 200, 210, 255))
    for row, style in enumerate(styles):
        for column, noun in enumerate(nouns):
            drawings = sprites.get((style, noun), [])
            for index, drawing in enumerate(drawings):
                small = drawing.copy()
                small.thumbnail((cell // max(1, len(drawings)) - 2, cell - 4))
                place = (column * cell + index * cell // len(drawings), row * cell + 2)
                sheet.alpha_composite(small, place)
    return sheet.convert("RGB")


def build_artwork() -> None:
    """The step `artwork` of `python -m training`."""
    sprites = render_all_sprites()
    for style in STYLES:
        missing = [noun for noun in NOUNS if (style.name, noun) not in sprites]
        print(f"{style.name}: {len(NOUNS) - len(missing)} nouns, missing {missing}")
    save_sprites(sprites)
    CONTACT_SHEETS.mkdir(parents=True, exist_ok=True)
    names = [style.name for style in STYLES]
    for start in range(0, len(NOUNS), 17):
        sheet = contact_sheet(sprites, names, start, start + 17)
        sheet.save(CONTACT_SHEETS / f"sprites_{start:02d}.png")
