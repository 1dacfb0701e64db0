"""Random image files, whole and damaged: each becomes upright 8-bit RGB, or one sentence that names the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz.damage import damaged_bytes
from tests.fuzz.judging import FUZZ

from nerve_kernels.segmentation.images import REFUSED_FORMATS, NotAnImageError, load_image, readable_formats

MODES = {
    "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "I;16", "I", "F", "P", "RGB", "RGBA", "CMYK"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "TGA": ("L", "LA", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "ICO": ("RGBA",),
}
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".tif", ".gif", ".webp", ".txt", "", ".PNG", ".eps")
sizes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([(1, 1), (1, 200), (200, 1)]),
)
long_sizes = st.sampled_from([(20_000, 10), (10, 20_000)])


@st.composite
def image_files(draw: st.DrawFn) -> tuple[bytes, tuple[int, int]]:
    """An image as a file, and the size that it has once upright."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    size = (16, 16) if kind == "ICO" else draw(sizes)
    if kind not in ("ICO", "WEBP") and draw(st.integers(0, 60)) == 0:  # WebP ends at 16383
        size = draw(long_sizes)
    values = np.random.default_rng(draw(st.integers(0, 2**31))).integers(0, 256, (size[1], size[0]))
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((values * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray((values / 255).astype(np.float32))
    else:
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    options: dict[str, object] = {}
    upright = size
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and mode in ("L", "RGB") and draw(st.booleans()):
        orientation = draw(st.integers(0, 9))
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
        upright = (size[1], size[0]) if 5 <= orientation <= 8 else size
    elif kind in ANIMATED and mode == "RGB" and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [image.rotate(180)] * draw(st.integers(1, 3))}
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue(), upright


def read(folder: Path, content: bytes, suffix: str) -> Image.Image | None:
    """The image; None where it was refused as it should be."""
    path = folder / f"image{suffix}"
    path.write_bytes(content)
    try:
        loaded = load_image(path)
    except NotAnImageError as error:
        assert str(error).startswith(f"{path}: ")
        assert "Traceback" not in str(error)
        return None
    assert loaded.mode == "RGB"
    assert min(loaded.size) >= 1
    loaded.tobytes()
    return loaded


@FUZZ
@given(image_files(), st.sampled_from(SUFFIXES))
def test_whole_files_are_read_whatever_they_are_called(tmp_path_factory, file, suffix):
    content, size = file
    loaded = read(tmp_path_factory.getbasetemp(), content, suffix)
    assert loaded is not None
    assert loaded.size == size


@FUZZ
@given(image_files(), st.sampled_from(SUFFIXES), st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage; the command silences it
def test_damaged_files_are_read_or_refused(tmp_path_factory, file, suffix, data):
    # most of what a reader believes without looking stands at the beginning
    content = damaged_bytes(data.draw, file[0], mostly_before=400)
    read(tmp_path_factory.getbasetemp(), content, suffix)


@FUZZ
@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode("utf-8", "surrogatepass")))
@pytest.mark.filterwarnings("ignore")
def test_files_of_anything(tmp_path_factory, content):
    read(tmp_path_factory.getbasetemp(), content, ".png")


def declared(kind: str, width: int, height: int) -> bytes:
    """A file of a few bytes whose header promises an image of any size."""
    if kind == "PNG":
        body = b"IHDR" + struct.pack(">IIBBBBB", width % 2**31, height % 2**31, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    if kind == "BMP":
        header = struct.pack("<IiiHHIIiiII", 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
    if kind == "GIF":
        return b"GIF89a" + struct.pack("<HHBBB", width % 2**16, height % 2**16, 0, 0, 0)
    return f"P6 {width} {height} 255\n".encode()


@FUZZ
@given(st.sampled_from(["PNG", "BMP", "GIF", "PPM"]), st.integers(10_000, 10**12), st.integers(10_000, 10**12))
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_declared_size_costs_nothing(tmp_path_factory, kind, width, height):
    assert read(tmp_path_factory.getbasetemp(), declared(kind, width, height), ".png") is None


def test_no_program_is_run_to_read_an_image(tmp_path, monkeypatch):
    """Pillow would hand EPS, a programming language, to Ghostscript."""
    from PIL import EpsImagePlugin

    called: list[object] = []  # not raised: what a reader raises is taken for damage
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: called.append(arguments))
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "EPS")
    for suffix in (".eps", ".jpg"):
        assert read(tmp_path, stream.getvalue(), suffix) is None
    assert called == []
    assert not REFUSED_FORMATS & set(readable_formats())
    assert {"EPS", "PDF", "WMF"} <= REFUSED_FORMATS
