"""From an image and words to a mask: the NERVE pipeline on Stable Diffusion and CLIP.

Everything here is loaded at first use, so that importing `nerve_kernels` needs torch and
numpy only. The models come with the extra: ``pip install "nerve_kernels[segmentation]"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import NerveConfig
    from .features import ImageFeatures
    from .pipeline import NervePipeline
    from .presets import PRESETS, Preset
    from .result import Segmentation

__all__ = [
    "PRESETS",
    "ImageFeatures",
    "NerveConfig",
    "NervePipeline",
    "Preset",
    "Segmentation",
]

_HOME = {
    "PRESETS": "presets",
    "Preset": "presets",
    "ImageFeatures": "features",
    "NerveConfig": "config",
    "NervePipeline": "pipeline",
    "Segmentation": "result",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
