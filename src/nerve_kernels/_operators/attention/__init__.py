"""Operators on q and k, or on explicit attention maps; none but those that fuse maps return a dense one."""

from .attention_entropy import attention_entropy
from .attention_map_entropy import attention_map_entropy
from .attention_marginal import attention_marginal
from .attention_statistics import attention_statistics
from .cliper import cliper
from .fuse_attention import fuse_attention
from .fuse_attention_maps import fuse_attention_maps
from .global_affinity import global_affinity
from .local_affinity import local_affinity

__all__ = [
    "attention_entropy",
    "attention_map_entropy",
    "attention_marginal",
    "attention_statistics",
    "cliper",
    "fuse_attention",
    "fuse_attention_maps",
    "global_affinity",
    "local_affinity",
]
