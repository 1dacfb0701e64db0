"""A mask as one polygon: parts and holes are joined by seams, lines that are walked there and back."""

from __future__ import annotations

import numpy as np

# How far from the centre of a pixel that is out, towards one that is in, the outline runs. At a half, programs that
# draw it as well would gain a row of pixels; at one, those that fill by centres would lose one.
LEVEL = 0.75
# Pixels by which a simplified outline may stray: less than what is left to the centre.
TOLERANCE = 0.2


def polygon(mask: np.ndarray) -> np.ndarray:
    """The outline of a mask.

    A pixel is in the mask where its centre is in the polygon, by either rule, even-odd or winding; and where a program
    that also draws the outline would fill it.

    Args:
        mask: bool (height, width), with at least one pixel.

    Returns:
        (points, 2) float64: x to the right and y down in pixels, 0 at the image's left and upper border.
    """
    from skimage.measure import approximate_polygon, find_contours

    framed = np.pad(mask, 1).astype(np.float64)
    outlines = find_contours(framed, LEVEL, positive_orientation="low")
    # Row, column of pixels' centres within the frame become x, y.
    rings = [approximate_polygon(outline, TOLERANCE)[:, ::-1] - 0.5 for outline in outlines]
    return _joined(sorted(rings, key=len, reverse=True))


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """Closed rings as one: each is reached from the nearest point of those before, and left to it again."""
    from scipy.spatial import cKDTree

    whole = rings[0]
    for ring in rings[1:]:
        distances, nearest = cKDTree(ring).query(whole)
        leave = int(distances.argmin())
        around = np.roll(ring[:-1], -int(nearest[leave]), axis=0)
        whole = np.concatenate([whole[: leave + 1], around, around[:1], whole[leave:]])
    return whole
