"""The scenes that ship with the package: images of several objects, with exact masks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from nerve_kernels._operators.checks import check_choice

from .labelled_images import LabelledImage, LabelledImages

SPLITS = ("validation", "test")


@dataclass(frozen=True, eq=False)
class EmbeddedScene(LabelledImage):
    """An image of several objects and the truth about it.

    Args:
        image: RGB, 128×128.
        mask: (128, 128) uint8; 0 is the background, i is ``EmbeddedScenes.classes[i]``.
        identifier: names the scene within all splits.
        names: the objects in it, without the background, in the order of ``classes``.
        style: the artwork it is made of: ``"noto"``, or ``"fluent"``, which no embedded model
            was trained on.
    """

    names: tuple[str, ...]
    style: str


class EmbeddedScenes(LabelledImages[EmbeddedScene]):
    """Scenes of 2 to 5 everyday objects, drawn from openly licensed artwork on varied backgrounds.

    A map-style ``torch.utils.data.Dataset``; nothing is downloaded. ``"validation"`` holds 100
    scenes in a style the embedded models know, ``"test"`` 100 in that style and 100 in one they
    never saw. Masks come from the artwork's own alpha channel, so they are exact.

    Args:
        split: ``"validation"`` (choose hyperparameters here) or ``"test"``.
        style: keep only scenes of this style; None: all.

    Raises:
        ValueError: an unknown split, or a style of which the split has no scene.

    Example:
        >>> scenes = EmbeddedScenes("validation")
        >>> len(scenes), scenes.classes[0]
        (100, 'background')
        >>> scene = scenes[0]
        >>> scene.image.size, scene.mask.shape
        ((128, 128), (128, 128))
        >>> sorted(scenes.classes[i] for i in set(scene.mask.flat) if i) == sorted(scene.names)
        True
    """

    def __init__(self, split: str, *, style: str | None = None) -> None:
        check_choice("split", split, SPLITS)
        entries = [entry for entry in _manifest()["scenes"] if entry["split"] == split]
        if style is not None:
            known = sorted({entry["style"] for entry in entries})
            check_choice("style", style, known, f"the split {split!r} has no other")
            entries = [entry for entry in entries if entry["style"] == style]
        self.split = split
        self.name = f"embedded scenes ({split})"
        background, *objects = _manifest()["classes"]
        # Their CLIP has learnt the word itself, so it stands for the background and no usual list does.
        self.names = ((background, background), *((name,) for name in objects))
        self.identifiers = tuple(_identifier(entry) for entry in entries)
        self._entries = entries

    def __iter__(self) -> Iterator[EmbeddedScene]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> EmbeddedScene:
        entry = self._entries[index]
        from PIL import Image

        with Image.open(io.BytesIO(_read(entry["image"]))) as opened:
            image = opened.convert("RGB")
        with Image.open(io.BytesIO(_read(entry["mask"]))) as opened:
            mask = np.array(opened, dtype=np.uint8)
        return EmbeddedScene(
            image=image,
            mask=mask,
            names=tuple(entry["names"]),
            style=entry["style"],
            identifier=_identifier(entry),
        )


def _identifier(entry: dict[str, Any]) -> str:
    name: str = entry["image"].rsplit(".", 1)[0]
    return name


def _read(path: str) -> bytes:
    return resources.files(__package__).joinpath("embedded_scenes", path).read_bytes()


@cache
def _manifest() -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(_read("scenes.json"))
    return manifest
