"""YOLO: a text file for each image, a polygon for each label, and the names of the labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from nerve_kernels.segmentation.output.files import write_atomic

from .annotated_image import AnnotatedImage
from .polygons import polygon

FOLDER = "yolo"


class YoloFiles:
    """``yolo/labels/NAME.txt`` and ``yolo/data.yaml``; the images are looked for in ``yolo/images``.

    Args:
        folder: Where the folder ``yolo`` goes.
        labels: The classes, numbered from 0 in this order.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._folder = folder / FOLDER
        self._numbers = {label: number for number, label in enumerate(labels)}

    def paths(self, names: Iterable[str]) -> list[Path]:
        """A file for each image, and that of the names."""
        return [*(self._path(name) for name in names), self._folder / "data.yaml"]

    def add(self, image: AnnotatedImage) -> Path:
        """Write an image's file: a line a label, its number and the polygon in fractions of width and height."""
        lines = []
        for label, mask in image.masks.items():
            points = np.clip(polygon(mask) / (image.width, image.height), 0.0, 1.0)
            lines.append(" ".join([str(self._numbers[label]), *(f"{value:.6f}" for value in points.ravel())]))
        return write_atomic(self._path(image.name), "".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """Write the names."""
        if self._folder.is_dir():
            names = {number: label for label, number in self._numbers.items()}
            lines = ["path: .", "train: images", "val: images", "names:"]
            # JSON's strings are YAML's
            lines += [f"  {number}: {json.dumps(label)}" for number, label in names.items()]
            write_atomic(self._folder / "data.yaml", ("\n".join(lines) + "\n").encode())

    def _path(self, name: str) -> Path:
        return self._folder / "labels" / PurePosixPath(name).with_suffix(".txt")
