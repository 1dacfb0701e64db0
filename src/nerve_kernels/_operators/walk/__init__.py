"""Operators on an affinity: its product with label columns, the random walk, its adjoint and its limit."""

from . import random_walk, random_walk_backward, random_walk_limit, window_product

__all__ = ["random_walk", "random_walk_backward", "random_walk_limit", "window_product"]
