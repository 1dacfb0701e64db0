"""Tiny random checkpoints and two images, for the whole command; nothing is fetched."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of the hub's libraries is imported

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.segmentation.tiny_checkpoints import make_clip, make_stable_diffusion
from tests.warm_python import WarmPython


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    make_stable_diffusion(folder / "diffusion")
    make_clip(folder / "clip")
    config = folder / "config.json"
    config.write_text(
        json.dumps(
            {"diffusion_size": 32, "clip_size": 32, "clip_window": None, "templates": "name", "window": 3, "steps": 3}
        )
    )
    return [
        "--diffusion",
        str(folder / "diffusion"),
        "--clip",
        str(folder / "clip"),
        "--config",
        str(config),
        "--device",
        "cpu",
    ]


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    started = WarmPython()
    yield started
    started.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.radial_gradient("L").resize((90, 60)).save(folder / "wide.png")
    Image.linear_gradient("L").resize((40, 70)).convert("CMYK").save(folder / "tall.jpg")
    return folder
