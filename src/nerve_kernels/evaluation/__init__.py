"""Measuring segmentations: the data sets of the field, mean intersection over union, evaluation on many machines."""

from .datasets import ADE20K, COCO, DATASETS, Cityscapes, PascalContext, PascalVOC, open_dataset
from .embedded import EmbeddedScene, EmbeddedScenes
from .labelled_images import ImagesInFiles, LabelledImage, LabelledImages, UnreadableImageError
from .layouts import DatasetNotFoundError
from .metrics import IoUScore, MeanIoU

__all__ = [
    "ADE20K",
    "COCO",
    "DATASETS",
    "Cityscapes",
    "DatasetNotFoundError",
    "EmbeddedScene",
    "EmbeddedScenes",
    "ImagesInFiles",
    "IoUScore",
    "LabelledImage",
    "LabelledImages",
    "MeanIoU",
    "PascalContext",
    "PascalVOC",
    "UnreadableImageError",
    "open_dataset",
]
