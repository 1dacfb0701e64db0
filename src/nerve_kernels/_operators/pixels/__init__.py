"""Operators from tokens to the pixels of an image."""

from .best_labels import best_labels

__all__ = ["best_labels"]
