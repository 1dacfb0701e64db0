"""The embedded models, loaded once; nothing is fetched."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of the hub's libraries is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import base64
import io

import pytest
from PIL import Image

from nerve_kernels.segmentation import NervePipeline
from nerve_kernels.web.workbench import Workbench


@pytest.fixture(scope="session")
def pipeline() -> NervePipeline:
    return NervePipeline.from_preset("embedded", device="cpu")


@pytest.fixture
def workbench(pipeline: NervePipeline) -> Workbench:
    made = Workbench(lambda: pipeline)
    made.start_loading()
    assert made.models_state(timeout=60).state == "ready"
    return made


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def as_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares any size."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
