"""Images of more than 8 bits: by what range their greys are read, and how little memory that takes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nerve_kernels.segmentation.images import NotAnImageError, load_image


def greys(values: list[float], dtype: type = np.float32) -> list[int]:
    loaded = load_image(Image.fromarray(np.array([values], dtype=dtype)))
    return [loaded.getpixel((x, 0))[0] for x in range(len(values))]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0, 0.25, 1], [0, 64, 255]),
        ([0, 0.25, 0.5], [0, 64, 128]),  # within [0, 1] nothing is stretched
        ([0, 0.5, 1.0001], [0, 127, 255]),  # once taken for greys up to 255, and black
        ([0, 1.5, 3], [0, 128, 255]),
        ([0.5, 51.2, 102.4], [1, 128, 255]),
        ([0, 100, 200], [0, 100, 200]),  # an 8-bit image in floats
        ([0, 100 * 257, 65535], [0, 100, 255]),  # a 16-bit one
        ([0, 65536.5, 131073], [0, 128, 255]),
        ([-1, 0, 1], [0, 128, 255]),
        ([-3, -2, -3], [0, 255, 0]),
        ([0, 0, 0], [0, 0, 0]),
        ([1e-30, 0, 1e30], [0, 0, 255]),
    ],
)
def test_floats_are_scaled_by_their_range(values, wanted):
    assert greys(values) == wanted


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 100 * 257, 65535], np.int32, [0, 100, 255]),
        ([0, 2**30, 2**31 - 1], np.int32, [0, 128, 255]),  # once white
        ([-255, 0, 255], np.int32, [0, 128, 255]),
        ([0, 100 * 257, 65535], np.uint16, [0, 100, 255]),
        ([0, 257, 514], np.uint16, [0, 1, 2]),
    ],
)
def test_whole_numbers_keep_their_convention_where_it_holds_them(values, dtype, wanted):
    assert greys(values, dtype) == wanted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_are_none_are_refused(tmp_path, value, place):
    values = np.array([[0.25, 0.5, 0.75]], dtype=np.float32)
    values[0, place] = value
    image = Image.fromarray(values)
    with pytest.raises(NotAnImageError, match="image: expected finite values, got infinite ones or NaN"):
        load_image(image)
    image.save(tmp_path / "x.tiff")
    with pytest.raises(NotAnImageError, match=r"x\.tiff: unreadable \(image: expected finite values"):
        load_image(tmp_path / "x.tiff")


def test_bands_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=(37, 23)).astype(np.float32)
    at_once = load_image(Image.fromarray(values))
    monkeypatch.setattr("nerve_kernels.segmentation.images.BAND_PIXELS", 100)
    assert load_image(Image.fromarray(values)).tobytes() == at_once.tobytes()


def test_no_pixels_are_refused():
    with pytest.raises(NotAnImageError, match="expected pixels, got none"):
        load_image(Image.new("F", (0, 0)))
