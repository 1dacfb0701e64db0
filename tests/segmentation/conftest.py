"""Tiny random checkpoints in the hub's folder format, made once a session; nothing is fetched."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of the hub's libraries is imported

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.segmentation.tiny_checkpoints import make_clip, make_stable_diffusion


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stable_diffusion")
    make_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return folder


@pytest.fixture(scope="session")
def diffusion(diffusion_folder: Path):
    from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures

    return DiffusionFeatures.from_pretrained(diffusion_folder, device="cpu")


@pytest.fixture(scope="session")
def clip(clip_folder: Path):
    from nerve_kernels.segmentation.text_image.clip import DenseClip

    return DenseClip.from_pretrained(clip_folder, device="cpu")


@pytest.fixture(scope="session")
def tiny_config():
    from nerve_kernels.segmentation import NerveConfig

    return NerveConfig(
        diffusion_size=48,
        clip_size=32,
        clip_window=None,
        templates="photo",
        window=3,
        steps=5,
    )


@pytest.fixture(scope="session")
def pipeline(diffusion, clip, tiny_config):
    from nerve_kernels.segmentation import NervePipeline

    return NervePipeline(attention=diffusion, text_image=clip, config=tiny_config)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def wide_image() -> Image.Image:
    """90 x 60 pixels: a red disc and a blue square on noise."""
    random = np.random.default_rng(3)
    pixels = random.integers(90, 160, (60, 90, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:60, :90]
    pixels[(rows - 30) ** 2 + (columns - 25) ** 2 < 300] = (220, 40, 40)
    pixels[15:45, 55:80] = (40, 60, 220)
    return Image.fromarray(pixels)
