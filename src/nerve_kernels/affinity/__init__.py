"""Stage 2: S, the affinity of tokens, in each of its forms, and what makes it from attention, features and pixels."""

from .base import Affinity
from .from_attention import global_affinity, local_affinity
from .from_pixels import pixel_affinity
from .graph import GraphAffinity
from .local import LocalAffinity
from .low_rank import LowRankAffinity
from .mixed import MixedAffinity, mix
from .nearest_neighbours import knn_affinity

__all__ = [
    "Affinity",
    "GraphAffinity",
    "LocalAffinity",
    "LowRankAffinity",
    "MixedAffinity",
    "global_affinity",
    "knn_affinity",
    "local_affinity",
    "mix",
    "pixel_affinity",
]
