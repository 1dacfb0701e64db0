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
    """The coloured and named image.

    Returns:
        The file's ``name`` and its content as a data ``url``.

    Example:
        >>> overlay_file(Image.new("RGB", (2, 2)))["url"][:22]
        'data:image/png;base64,'
    """
    return {"name": "nerve_overlay.png", "url": png_url(overlay)}


def labels_file(segmentation: Segmentation) -> dict[str, str]:
    """Labels as palette indices, at the image's size."""
    return {"name": "nerve_labels.png", "url": png_url(segmentation.indexed())}


def summary_file(segmentation: Segmentation, config: NerveConfig) -> dict[str, str]:
    """Areas and mean probabilities, and every setting that led to them."""
    content = segmentation.summary() | {"config": asdict(config)}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return {"name": "nerve.json", "url": _url("application/json", text.encode())}


def png_url(image: Image.Image) -> str:
    """An image as a data URL.

    Example:
        >>> png_url(Image.new("RGB", (2, 2)))[:22]
        'data:image/png;base64,'
    """
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return _url("image/png", stream.getvalue())


def _url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
