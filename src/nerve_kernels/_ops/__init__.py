"""The operators: one file each, holding schema, fake, gradient, vmap rule, eager implementation and choice of backend.

Importing this package defines ``torch.ops.nerve_kernels.*``; no compiled file is needed for an operator to exist.
"""

from . import (
    attention_entropy,
    attention_map_entropy,
    attention_marginal,
    fuse_attention,
    global_affinity,
    local_affinity,
    random_walk,
    random_walk_backward,
    random_walk_limit,
    window_product,
)

__all__ = [
    "attention_entropy",
    "attention_map_entropy",
    "attention_marginal",
    "fuse_attention",
    "global_affinity",
    "local_affinity",
    "random_walk",
    "random_walk_backward",
    "random_walk_limit",
    "window_product",
]
