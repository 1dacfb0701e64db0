"""Measuring segmentations: data sets with exact masks, and mean intersection over union."""

from .datasets import EmbeddedScene, EmbeddedScenes
from .metrics import IoUScore, MeanIoU

__all__ = ["EmbeddedScene", "EmbeddedScenes", "IoUScore", "MeanIoU"]
