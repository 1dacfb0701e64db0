"""What the page accepts: every limit in one place, each refused in words."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image, UnidentifiedImageError

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.images import load_image

MAX_FILE_BYTES = 12 * 2**20
MAX_PIXELS = 40_000_000
MAX_SIDE = 1024
MAX_LABELS = 60
MAX_LABEL_LENGTH = 80
MAX_TEXT_LENGTH = 4000
MAX_STEPS = 100
MAX_SHARPNESS = 16
MAX_WINDOW = 31
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class RefusedError(ValueError):
    """Something that the page does not take; the message is for whoever sent it."""


def read_upload(encoded: object) -> Image.Image:
    """An image as the browser sends it, decoded in memory; no file is written and no name is looked at.

    Args:
        encoded: a data URL, ``data:image/png;base64,...``; its media type is not trusted.

    Returns:
        Upright RGB, its longer side at most ``MAX_SIDE`` pixels.

    Raises:
        RefusedError: too large a file, too many pixels, or no image.

    Example:
        >>> read_upload("data:image/png;base64,aGVsbG8=")
        Traceback (most recent call last):
            ...
        nerve_kernels.web.limits.RefusedError: This file is not an image that can be read here. Wanted PNG, JPEG, \
WEBP, GIF, BMP or TIFF.
    """
    if not isinstance(encoded, str) or not encoded.startswith("data:") or "," not in encoded:
        raise RefusedError("No image came with the request.")
    text = encoded.split(",", 1)[1]
    if len(text) > 4 * (MAX_FILE_BYTES // 3 + 1):
        raise RefusedError(_too_large_a_file())
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise RefusedError("The image did not arrive whole. Please drop it again.") from None
    if len(content) > MAX_FILE_BYTES:
        raise RefusedError(_too_large_a_file())
    return read_image(content)


def read_image(content: bytes) -> Image.Image:
    """An image file's bytes as upright RGB of the page's size; its pixels are counted before any is decoded.

    Raises:
        RefusedError: too many pixels, damaged, or no image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _refuse_too_many_pixels(*opened.size)
            opened.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG is then decoded small at once
            image = load_image(opened)
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(f"This image has too many pixels. Wanted at most {_millions(MAX_PIXELS)}.") from None
    except UnidentifiedImageError:
        names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise RefusedError(f"This file is not an image that can be read here. Wanted {names}.") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers report damage by nearly every exception there is
        raise RefusedError(f"This image is damaged ({str(error) or type(error).__name__}).") from None
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def check_labels(text: object) -> str:
    """The labels' text, if it is not too long; what the labels mean is the pipeline's matter.

    Raises:
        RefusedError: no text, too many labels, or too long a one.

    Example:
        >>> check_labels("cat, dog")
        'cat, dog'
    """
    if not isinstance(text, str) or not text.strip():
        raise RefusedError("Type what to look for, for example: background, cat, house.")
    if len(text) > MAX_TEXT_LENGTH:
        raise RefusedError(f"The labels are {len(text)} characters long. Wanted at most {MAX_TEXT_LENGTH}.")
    pieces = text.replace("\n", ",").replace("|", ",").split(",")
    if len(pieces) > MAX_LABELS:
        raise RefusedError(f"These are {len(pieces)} labels and synonyms. Wanted at most {MAX_LABELS}.")
    longest = max(pieces, key=len).strip()
    if len(longest) > MAX_LABEL_LENGTH:
        raise RefusedError(
            f"The label '{longest[:20]}…' is {len(longest)} characters long. Wanted at most {MAX_LABEL_LENGTH}."
        )
    return text.strip()


def check_settings(config: NerveConfig) -> NerveConfig:
    """A config, if it does not ask for more work than the page's sliders can.

    Raises:
        RefusedError: too many steps or too wide a window.
    """
    if config.steps is None or config.steps > MAX_STEPS:
        raise RefusedError(f"steps L: got {config.steps}. Wanted at most {MAX_STEPS}.")
    if not isinstance(config.window, int) or config.window > MAX_WINDOW:
        raise RefusedError(f"window: got {config.window}. Wanted at most {MAX_WINDOW}.")
    return config


def _refuse_too_many_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RefusedError(
            f"This image is {width} × {height} pixels. Wanted at most {_millions(MAX_PIXELS)}; make it smaller "
            "and drop it again."
        )


def _too_large_a_file() -> str:
    return f"This file is too large. Wanted at most {MAX_FILE_BYTES // 2**20} MB."


def _millions(pixels: int) -> str:
    return f"{pixels // 1_000_000} million pixels"
