"""Operators on an affinity: its product with label columns, the random walk, and its limit."""

from .nearest_neighbours import add_transpose, nearest_columns
from .random_walk import random_walk
from .random_walk_limit import random_walk_limit
from .window_product import window_product

__all__ = ["add_transpose", "nearest_columns", "random_walk", "random_walk_limit", "window_product"]
