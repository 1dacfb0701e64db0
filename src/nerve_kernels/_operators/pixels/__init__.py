"""Operators on the pixels of an image."""

from .best_labels import best_labels
from .pixel_affinity import pixel_affinity

__all__ = ["best_labels", "pixel_affinity"]
