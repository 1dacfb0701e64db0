"""Operators on q and k, or on explicit attention maps; none but ``fuse_attention`` makes a dense map."""

from . import (
    attention_entropy,
    attention_map_entropy,
    attention_marginal,
    fuse_attention,
    global_affinity,
    local_affinity,
)

__all__ = [
    "attention_entropy",
    "attention_map_entropy",
    "attention_marginal",
    "fuse_attention",
    "global_affinity",
    "local_affinity",
]
