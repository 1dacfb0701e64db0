"""Operators from tokens to the pixels of an image."""

from . import best_labels

__all__ = ["best_labels"]
