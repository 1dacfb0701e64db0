"""Masks as COCO's run lengths, by pycocotools."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class RunLengths(TypedDict):
    """COCO's compressed run lengths of a mask, column after column.

    Args:
        size: [height, width].
        counts: the lengths as ASCII text.
    """

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> RunLengths:
    """The run lengths of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        What JSON and Parquet can hold and pycocotools decodes.

    Example:
        >>> encode(np.eye(2, dtype=bool))
        {'size': [2, 2], 'counts': '0120'}
    """
    from pycocotools import mask as coco_mask

    # COCO's order of memory is that of Fortran
    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode("ascii")}


def decode(lengths: RunLengths) -> np.ndarray:
    """The mask of run lengths, bool (height, width).

    Example:
        >>> decode(encode(np.eye(2, dtype=bool))).tolist()
        [[True, False], [False, True]]
    """
    from pycocotools import mask as coco_mask

    return np.ascontiguousarray(coco_mask.decode(lengths)).astype(bool)
