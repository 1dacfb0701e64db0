"""The scenes that ship: for validation and test, and the images of the demo.

Only artwork and photographs that may be redistributed; backgrounds from the parts of the
photographs that training never sees; a seed of its own for every scene.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image
from training.paths import EMBEDDED, EMBEDDED_SCENES
from training.world.artwork import Sprites, load_sprites
from training.world.backgrounds import PHOTOGRAPHS, Backgrounds
from training.world.composition import Scene, SceneRecipe, compose_scene
from training.world.vocabulary import BACKGROUND, NOUN_LIST, SEEN_STYLE, SHIPPED_STYLES, STYLES, UNSEEN_STYLE

#: (split, style, scenes, first seed); training and its check draw from other seeds.
SPLITS: tuple[tuple[str, str, int, int], ...] = (
    ("validation", SEEN_STYLE, 100, 700_000),
    ("test", SEEN_STYLE, 100, 800_000),
    ("test", UNSEEN_STYLE, 100, 810_000),
)
RECIPE = SceneRecipe(first_drawing_only=True)
DEMO_RECIPE = replace(
    RECIPE, width=192, fewest_objects=4, most_objects=4, smallest_side=52, largest_side=74, least_visible_share=0.75
)
#: (file, style, seed): chosen by eye among 49 of each style for clear images; the second also for
#: being one the models do well, so the demo says nothing about the average scene.
DEMO: tuple[tuple[str, str, int], ...] = (
    ("scene_noto_1.png", SEEN_STYLE, 720_009),
    ("scene_noto_2.png", SEEN_STYLE, 720_011),
    ("scene_fluent.png", UNSEEN_STYLE, 730_028),
)
JPEG_QUALITY = 92


def shipped_scene(sprites: Sprites, backgrounds: Backgrounds, style: str, seed: int, recipe: SceneRecipe) -> Scene:
    """The scene of one seed, the same on every machine."""
    if style not in SHIPPED_STYLES:
        raise ValueError(f"style: got {style!r}, wanted one that may ship: {', '.join(SHIPPED_STYLES)}")
    return compose_scene(np.random.default_rng(seed), sprites, (style,), backgrounds, recipe)


def save_mask(mask: np.ndarray, path: Path) -> None:
    """An indexed PNG whose palette lets a person see the objects."""
    image = Image.fromarray(mask, "P")
    image.putpalette(_palette())
    image.save(path, optimize=True)


def build_scenes() -> None:
    """The step `scenes` of `python -m training`."""
    sprites, backgrounds = load_sprites(), Backgrounds("evaluation")
    _build_splits(sprites, backgrounds)
    _build_demo(sprites, backgrounds)


def _build_splits(sprites: Sprites, backgrounds: Backgrounds) -> None:
    shutil.rmtree(EMBEDDED_SCENES, ignore_errors=True)
    entries = []
    for split, style, count, first_seed in SPLITS:
        folder = EMBEDDED_SCENES / split
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene = shipped_scene(sprites, backgrounds, style, first_seed + index, RECIPE)
            stem = f"{split}/{style}_{index:03d}"
            image = Image.fromarray(scene.image)
            image.save(EMBEDDED_SCENES / f"{stem}.jpg", quality=JPEG_QUALITY, subsampling=0, optimize=True)
            save_mask(scene.mask, EMBEDDED_SCENES / f"{stem}.png")
            entries.append(
                {
                    "split": split,
                    "style": style,
                    "image": f"{stem}.jpg",
                    "mask": f"{stem}.png",
                    "names": sorted(scene.nouns, key=NOUN_LIST.index),
                    "seed": first_seed + index,
                }
            )
    document = {"classes": [BACKGROUND, *NOUN_LIST], "licences": _licences(), "scenes": entries}
    (EMBEDDED_SCENES / "scenes.json").write_text(_compact_json(document))


def _build_demo(sprites: Sprites, backgrounds: Backgrounds) -> None:
    folder = EMBEDDED / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = []
    for file, style, seed in DEMO:
        scene = shipped_scene(sprites, backgrounds, style, seed, DEMO_RECIPE)
        Image.fromarray(scene.image).save(folder / file, optimize=True)
        labels = [BACKGROUND, *sorted(scene.nouns, key=NOUN_LIST.index)]
        images.append({"file": file, "style": style, "labels": labels, "seed": seed})
    (folder / "labels.json").write_text(_compact_json({"licences": _licences(), "images": images}))


def _licences() -> dict[str, list[dict[str, str]]]:
    artwork = [
        {"style": style.name, "package": style.package, "licence": style.licence, "author": style.author}
        for style in STYLES
        if style.ships
    ]
    return {"artwork": artwork, "photographs": [asdict(photograph) for photograph in PHOTOGRAPHS]}


def _compact_json(document: Mapping[str, object]) -> str:
    """One entry of a list a line: short, and a change shows as a line."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join("    " + json.dumps(row) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _palette() -> list[int]:
    """Black, then well separated hues."""
    colours = [0, 0, 0]
    for index in range(len(NOUN_LIST)):
        # Steps of the golden ratio around the colour circle never come close to one another.
        hue = (index * 0.618034) % 1.0
        sector, offset = divmod(hue * 6, 1)
        rising, falling = round(255 * offset), round(255 * (1 - offset))
        colours += [
            (255, rising, 60), (falling, 255, 60), (60, 255, rising),
            (60, falling, 255), (rising, 60, 255), (255, 60, falling),
        ][int(sector)]  # fmt: skip
    return colours
