"""The operators: one file each, holding schema, fake, gradient, vmap rule, eager implementation and choice of backend.

Importing this package defines ``torch.ops.nerve_kernels.*``; no compiled file is needed for an operator to exist.
"""

from . import attention, pixels, walk

__all__ = ["attention", "pixels", "walk"]
