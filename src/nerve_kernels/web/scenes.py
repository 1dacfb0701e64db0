"""The images the page offers to who has none at hand: scenes that ship with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from PIL import Image

from nerve_kernels.evaluation import EmbeddedScenes
from nerve_kernels.segmentation.presets import EMBEDDED_FOLDER

FROM_TEST_SPLIT = (3, 120, 150)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and labels that suit it."""

    image: Image.Image
    labels: str


@cache
def scenes() -> tuple[Scene, ...]:
    """The demonstration images, and some of the test scenes.

    Example:
        >>> scenes()[0].labels
        'background, cat, mushroom, house, balloon'
    """
    folder = EMBEDDED_FOLDER / "demo"
    found = []
    for entry in json.loads((folder / "labels.json").read_text(encoding="utf-8"))["images"]:
        with Image.open(folder / entry["file"]) as opened:
            found.append(Scene(opened.convert("RGB"), ", ".join(entry["labels"])))
    test = EmbeddedScenes("test")
    found += [Scene(test[i].image, ", ".join(("background", *test[i].names))) for i in FROM_TEST_SPLIT]
    return tuple(found)


@cache
def known_words() -> str:
    """The nouns that the embedded models were trained on.

    Example:
        >>> known_words()[:15]
        'cat, dog, tiger'
    """
    return ", ".join(EmbeddedScenes("test").classes[1:])
