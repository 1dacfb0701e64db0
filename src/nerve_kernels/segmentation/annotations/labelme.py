"""labelme: a JSON file for each image, each label a shape of the kind ``mask``."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from nerve_kernels.segmentation.output.files import write_atomic

from .annotated_image import AnnotatedImage

FOLDER = "labelme"
# The first version of the format with masks; labelme warns of files of another major version.
VERSION = "5.2.0"


class LabelmeFiles:
    """``labelme/NAME.json``, which ``labelme --output labelme IMAGES`` opens.

    Args:
        folder: Where the folder ``labelme`` goes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def paths(self, names: Iterable[str]) -> list[Path]:
        """A file for each image."""
        return [self._path(name) for name in names]

    def add(self, image: AnnotatedImage) -> Path:
        """Write an image's file."""
        path = self._path(image.name)
        content: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": [_shape(label, mask) for label, mask in image.masks.items()],
            "imagePath": _seen_from(path.parent, image.source),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        return write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())

    def close(self) -> None:
        """Nothing is shared."""

    def _path(self, name: str) -> Path:
        return self._folder / PurePosixPath(name).with_suffix(".json")


def _shape(label: str, mask: np.ndarray) -> dict[str, Any]:
    """The mask within its bounding box, whose last row and column count."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, bottom, left, right = (int(end) for side in (rows, columns) for end in (side[0], side[-1]))
    stream = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(stream, format="PNG")
    return {
        "label": label,
        "points": [[left, top], [right, bottom]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(stream.getvalue()).decode("ascii"),
    }


def _seen_from(folder: Path, source: str) -> str:
    """labelme looks for the image from the folder of its file on; a URL stays as it is."""
    return source if "://" in source else os.path.relpath(source, folder)
