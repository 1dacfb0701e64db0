"""Any image file or array to upright 8-bit RGB, and from there to a tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from nerve_kernels._operators.checks import kind_of, refusal

MAX_ASPECT = 4.0
# EPS would be run as a program, by Ghostscript; the others hand the file to whatever program registered for it.
REFUSED_FORMATS = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})

# Pixels that are converted at once: what a conversion holds besides the image and its result stays small.
BAND_PIXELS = 2**20

ImageLike = Image.Image | np.ndarray | str | os.PathLike[str]
Converted = TypeVar("Converted")


class NotAnImageError(ValueError):
    """What was given cannot be read as an image."""


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in REFUSED_FORMATS)


@cache
def _image_suffixes() -> frozenset[str]:
    readable = readable_formats()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in readable)


def is_called_like_an_image(name: str | os.PathLike[str]) -> bool:
    """Whether files in these formats are usually called so.

    Example:
        >>> is_called_like_an_image("a/b.PNG"), is_called_like_an_image("s3://bucket/labels.txt")
        (True, False)
    """
    return PurePath(name).suffix.lower() in _image_suffixes()


def load_image(image: ImageLike) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF rotation is applied; transparency is laid on white; grey, palette, CMYK, 16-bit and
    floating-point images are converted; of an animation the first frame is taken. Floats in
    [0, 1] and whole numbers up to 255 or 65535 are taken for what they say; other values are
    scaled by their range, so that the largest is white.

    Args:
        image: a path, a ``PIL.Image.Image``, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    Returns:
        A ``PIL.Image.Image`` of mode RGB. The argument is left as it was.

    Raises:
        FileNotFoundError: no such file.
        NotAnImageError: the file is no image, or is damaged.
        TypeError: none of the accepted types, or an array that is not uint8.

    Example:
        >>> load_image(Image.new("LA", (4, 2))).mode
        'RGB'
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image))
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(refusal("image", "a path, a PIL image or a uint8 array", kind_of(image)))
    return read_image_file(Path(image), _to_rgb)


def read_image_file(path: Path, convert: Callable[[Image.Image], Converted]) -> Converted:
    """What becomes of an image file; no other is opened by Pillow, and none by another program.

    Args:
        path: a file, whatever its name.
        convert: makes something of the opened image, which is read by then and closed afterwards.

    Raises:
        FileNotFoundError: no such file.
        NotAnImageError: the file is no image, or is damaged, or `convert` refuses it by ValueError.

    Example:
        >>> read_image_file(Path("absent.png"), lambda image: image.size)
        Traceback (most recent call last):
            ...
        FileNotFoundError: absent.png: no such file
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():  # reading from a pipe or a device may never end
        raise NotAnImageError(f"{path}: not a file")
    try:
        # As a stream: of a path Pillow maps grey TIFFs into memory, and forgets to turn them upright.
        with path.open("rb") as stream:
            return _read_stream(stream, str(path), convert)
    except PermissionError as error:
        raise NotAnImageError(f"{path}: no permission to read it") from error
    except OSError as error:
        raise NotAnImageError(f"{path}: unreadable ({error})") from error


def read_image_bytes(content: bytes, name: str) -> Image.Image:
    """Upright 8-bit RGB from the bytes of an image file; `name` is what errors call it.

    Raises:
        NotAnImageError: it is no image, or is damaged.

    Example:
        >>> read_image_bytes(b"text", "a.png")
        Traceback (most recent call last):
            ...
        nerve_kernels.segmentation.images.NotAnImageError: a.png: not an image
    """
    return _read_stream(io.BytesIO(content), name, _to_rgb)


def _read_stream(stream: IO[bytes], name: str, convert: Callable[[Image.Image], Converted]) -> Converted:
    try:
        with Image.open(stream, formats=readable_formats()) as opened:
            opened.load()
            return convert(opened)
    except Image.DecompressionBombError as error:
        raise NotAnImageError(f"{name}: too large an image ({error})") from error
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"{name}: not an image") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers report damage by nearly every exception there is
        raise NotAnImageError(f"{name}: unreadable ({str(error) or type(error).__name__})") from error


def row_bands(height: int, width: int) -> list[slice]:
    """The rows of an image, so many at a time that what is computed of them takes little memory.

    Example:
        >>> row_bands(3, 600_000)
        [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    rows = max(1, BAND_PIXELS // max(1, width))
    return [slice(top, min(height, top + rows)) for top in range(0, height, rows)]


def size_for_model(size: tuple[int, int], short_side: int, multiple: int) -> tuple[int, int]:
    """The size an image is resized to for a model: whole multiples, the aspect ratio as near as they allow.

    Images longer than four times their width keep the area of the longest allowed one: a model's cost grows with
    the number of its tokens, or with its square. Where even one multiple is too wide for that, they are shortened.

    Args:
        size: (height, width) of the image in pixels.
        short_side: wanted shorter side in pixels.
        multiple: what both sides must be multiples of, in pixels.

    Returns:
        (height, width).

    Example:
        >>> size_for_model((600, 900), 512, 64), size_for_model((10, 20000), 512, 64)
        ((512, 768), (64, 24576))
    """
    scale = short_side / min(size) * min(1.0, (MAX_ASPECT * min(size) / max(size)) ** 0.5)
    height, width = (max(1, round(side * scale / multiple)) for side in size)
    # Half as much again is room for rounding, which only a side of less than one multiple exceeds.
    most = int(1.5 * MAX_ASPECT * max(1, round(short_side / multiple)) ** 2)
    short, long = min(height, width), min(max(height, width), max(1, most // min(height, width)))
    height, width = (short, long) if size[0] <= size[1] else (long, short)
    return height * multiple, width * multiple


def places_by_size(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Where each size occurs: what goes through a model together.

    Example:
        >>> places_by_size([(4, 6), (4, 4), (4, 6)])
        {(4, 6): [0, 2], (4, 4): [1]}
    """
    found: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        found.setdefault(size, []).append(place)
    return found


def to_tensor(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image and give it as a float tensor.

    Args:
        image: an RGB image.
        size: (height, width) in pixels.

    Returns:
        (1, 3, height, width) float32 in [0, 1], on the CPU.

    Example:
        >>> to_tensor(Image.new("RGB", (4, 2), "white"), (2, 3)).shape
        torch.Size([1, 3, 2, 3])
    """
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(torch.float32) / 255.0


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise TypeError(
            refusal(
                "image",
                "uint8 (H, W), (H, W, 3) or (H, W, 4)",
                f"an array of {array.dtype} {array.shape}",
                "scale floats to 0..255 and convert first",
            )
        )
    if 0 in array.shape:
        raise NotAnImageError(f"image: the array {array.shape} has no pixels")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else array)


def _to_rgb(image: Image.Image) -> Image.Image:
    return to_rgb_as_stored(ImageOps.exif_transpose(image))


def to_rgb_as_stored(image: Image.Image) -> Image.Image:
    """8-bit RGB, pixel for pixel as stored: without EXIF rotation, transparency laid on white.

    Raises:
        NotAnImageError: values that are infinite or NaN.
    """
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits; Pillow alone would clip it to white."""
    values = np.asarray(image)
    if not values.size:
        raise NotAnImageError("image: expected pixels, got none")
    bands = [values[rows] for rows in row_bands(*values.shape)]
    low, high = (float(extreme([extreme(band) for band in bands])) for extreme in (np.min, np.max))
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN is the extreme of what it is in
        raise NotAnImageError("image: expected finite values, got infinite ones or NaN; replace them first")
    is_whole = image.mode != "F" or all(bool((band == np.rint(band)).all()) for band in bands)
    offset, numerator, divisor = 0.0, 1.0, 1.0
    if image.mode == "F" and low >= 0.0 and high <= 1.0:
        numerator = 255.0
    elif is_whole and low >= 0.0 and high <= 65535.0:
        divisor = 257.0 if image.mode.startswith("I;16") or high > 255.0 else 1.0  # 65535 becomes 255
    else:
        offset = min(low, 0.0)
        numerator, divisor = 255.0, high - offset or 1.0
    grey = np.empty(values.shape, dtype=np.uint8)
    for rows, band in zip(row_bands(*values.shape), bands, strict=True):
        exact = (band.astype(np.float64) - offset) * numerator / divisor
        grey[rows] = exact.round().clip(0, 255)
    return Image.fromarray(grey)
