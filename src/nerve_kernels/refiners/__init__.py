"""The refiners of the field, each in one call: same numbers as the public code, all labels at once, memory linear.

They stand above attention → affinity → walk, and nothing there calls back.
"""

from .cliper import cliper
from .lposs import lposs
from .lposs_plus import lposs_plus
from .nerve import nerve
from .pamr import PAMR
from .refine import refine
from .similarity import similarity

__all__ = ["PAMR", "cliper", "lposs", "lposs_plus", "nerve", "refine", "similarity"]
