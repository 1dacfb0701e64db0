"""Data sets of a few small images, and how they are scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nerve_kernels.evaluation import EmbeddedScenes, LabelledImage, LabelledImages
from nerve_kernels.evaluation.scorer import Scorer


class Few(LabelledImages[LabelledImage]):
    """The first scenes of the validation split."""

    def __init__(self, count: int) -> None:
        self._scenes = EmbeddedScenes("validation")
        self.name, self.names = "few scenes", self._scenes.names
        self.identifiers = self._scenes.identifiers[:count]

    def __getitem__(self, index: int) -> LabelledImage:
        return self._scenes[index]


def scorer_of(pipeline, dataset=None, variants=None, vocabulary="image") -> Scorer:
    return Scorer(pipeline, dataset or Few(5), variants or {"method": pipeline.config}, vocabulary=vocabulary)


def voc_of(folder: Path, count: int) -> Path:
    """Images of 24 × 16 pixels in the layout of Pascal VOC."""
    for below in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / below).mkdir(parents=True)
    random = np.random.default_rng(5)
    names = [f"{number:04d}" for number in range(count)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / f"JPEGImages/{name}.jpg")
        labels = random.integers(0, 21, (16, 24), dtype=np.uint8)
        Image.fromarray(labels).save(folder / f"SegmentationClass/{name}.png")
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    return folder
