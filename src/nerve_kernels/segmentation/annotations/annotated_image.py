"""What every format is written from: an image's size and a mask for each label in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nerve_kernels.segmentation.result import Segmentation


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image with its masks, as tools for annotation take them.

    Args:
        source: Where the image is: a path or a URL.
        name: Its path below the folder that all images have in common, with ``/``.
        height, width: Of the upright image in pixels.
        masks: For each label that occurs a bool array (height, width); the background is what no mask covers.
    """

    source: str
    name: str
    height: int
    width: int
    masks: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, segmentation: Segmentation, source: str, name: str) -> AnnotatedImage:
        """The masks of a segmentation."""
        image = segmentation.image
        return cls(source, name, image.height, image.width, segmentation.masks())


class AnnotationFormat(Protocol):
    """Files of one format for any number of images; :meth:`close` finishes those that all images share."""

    def paths(self, names: Iterable[str]) -> list[Path]:
        """Every file that images of these names lead to, as often as it is led to."""

    def add(self, image: AnnotatedImage) -> Path:
        """Write what belongs to one image; the file it is in, or will be."""

    def close(self) -> None:
        """Write what is shared."""
