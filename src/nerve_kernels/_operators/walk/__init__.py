"""Operators on an affinity: its product with label columns, the random walk, and its limit."""

from .random_walk import random_walk
from .random_walk_limit import random_walk_limit
from .window_product import window_product

__all__ = ["random_walk", "random_walk_limit", "window_product"]
