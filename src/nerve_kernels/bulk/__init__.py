"""Any number of images on Ray Data, into Parquet; see ``docs/bulk.md``.

The libraries come with the extra: ``pip install "nerve_kernels[bulk]"``. :class:`Segmenter` alone needs none of Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .segmenter import Segmenter

__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .segmenter import Segmenter

    return Segmenter
