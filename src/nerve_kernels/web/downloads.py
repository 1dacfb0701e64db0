"""What a visitor takes home, as files that the browser makes: nothing is written on the server."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict

from PIL import Image

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.result import Segmentation


def overlay_file(overlay: Image.Image) -> dict[str, str]:
    """The coloured and named picture.

    Returns:
        The file's ``name`` and its content as a data ``url``.

    Example:
        >>> overlay_file(Image.new("RGB", (2, 2)))["url"][:22]
        'data:image/png;base64,'
    """
    return _file("nerve_overlay.png", "image/png", _png(overlay))


def labels_file(segmentation: Segmentation) -> dict[str, str]:
    """Labels as palette indices, at the picture's size."""
    return _file("nerve_labels.png", "image/png", _png(segmentation.indexed()))


def summary_file(segmentation: Segmentation, config: NerveConfig) -> dict[str, str]:
    """Areas and mean probabilities, and every setting that led to them."""
    content = segmentation.summary() | {"config": asdict(config)}
    return _file("nerve.json", "application/json", (json.dumps(content, indent=2) + "\n").encode())


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _file(name: str, media_type: str, content: bytes) -> dict[str, str]:
    return {"name": name, "url": f"data:{media_type};base64,{base64.b64encode(content).decode()}"}
