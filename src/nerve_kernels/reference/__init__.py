"""The definition of every operation: dense, float64, one formula after the other.

Nothing here is fast and nothing here is clever. Each function is a transcription of the method's formula on whole
matrices, on whatever inputs it is given, cast to float64 first. Every backend is tested against these functions, and
where a backend and this folder disagree, the backend is wrong. Affinities come back as dense (B, N, N) matrices.

Source: NERVE, arXiv 2511.08248; what the paper leaves open is marked "ours" in the public functions' docstrings.
"""

from .affinities import graph_to_dense, knn_affinity, low_rank_to_dense, mix, stencil_to_dense, window_to_dense
from .attention import (
    attention,
    attention_entropy,
    attention_map_entropy,
    attention_marginal,
    attention_statistics,
    fuse_attention,
    fuse_attention_maps,
    head_weights,
)
from .from_attention import WINDOW_MASS_FLOOR, global_affinity, local_affinity
from .grids import cell_average, query_resampling
from .pixels import best_labels, pixel_affinity, rgb_to_lab
from .refiners import cliper, similarity
from .walk import random_walk, random_walk_limit

__all__ = [
    "WINDOW_MASS_FLOOR",
    "attention",
    "attention_entropy",
    "attention_map_entropy",
    "attention_marginal",
    "attention_statistics",
    "best_labels",
    "cell_average",
    "cliper",
    "fuse_attention",
    "fuse_attention_maps",
    "global_affinity",
    "graph_to_dense",
    "head_weights",
    "knn_affinity",
    "local_affinity",
    "low_rank_to_dense",
    "mix",
    "pixel_affinity",
    "query_resampling",
    "random_walk",
    "random_walk_limit",
    "rgb_to_lab",
    "similarity",
    "stencil_to_dense",
    "window_to_dense",
]
