"""Training-free open-vocabulary segmentation: attention entropy, affinities and the random walk, fast and exact.

Three stages, ``attention → affinity → walk``; :mod:`nerve_kernels.reference` defines each of them in dense float64.
"""

from importlib.metadata import version

from . import reference, refiners
from ._operators.dispatch import BackendUnavailableError, available_backends, show_config
from .affinity import (
    GraphAffinity,
    LocalAffinity,
    LowRankAffinity,
    MixedAffinity,
    global_affinity,
    knn_affinity,
    local_affinity,
    mix,
    pixel_affinity,
)
from .attention import (
    attention_entropy,
    attention_map_entropy,
    attention_marginal,
    fuse_attention,
    fuse_attention_maps,
)
from .capturing import CapturedAttention, CapturedLayer, capture
from .heads import head_weights
from .refiners import refine
from .statistics import AttentionStatistics, attention_statistics
from .walk import random_walk, random_walk_limit
from .warmup import warmup

__version__ = version("nerve-kernels")

__all__ = [
    "AttentionStatistics",
    "BackendUnavailableError",
    "CapturedAttention",
    "CapturedLayer",
    "GraphAffinity",
    "LocalAffinity",
    "LowRankAffinity",
    "MixedAffinity",
    "__version__",
    "attention_entropy",
    "attention_map_entropy",
    "attention_marginal",
    "attention_statistics",
    "available_backends",
    "capture",
    "fuse_attention",
    "fuse_attention_maps",
    "global_affinity",
    "head_weights",
    "knn_affinity",
    "local_affinity",
    "mix",
    "pixel_affinity",
    "random_walk",
    "random_walk_limit",
    "reference",
    "refine",
    "refiners",
    "show_config",
    "warmup",
]
