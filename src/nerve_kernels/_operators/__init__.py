"""The operators of ``torch.ops.nerve_kernels``: one file and one declaration each, by stage.

Importing this package defines them; no compiled file is needed for an operator to exist. ``library`` derives from a
declaration what torch wants of it, ``dispatch`` chooses the backend of a call, ``checks`` refuse what does not fit
before an operator is called.
"""

from . import attention, pixels, walk

__all__ = ["attention", "pixels", "walk"]
