"""Tiny random models in the hub's format; nothing is fetched."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of the hub's libraries is imported

from pathlib import Path

import pytest
from tests.segmentation.tiny_checkpoints import make_clip, make_stable_diffusion

from nerve_kernels.segmentation import NerveConfig, NervePipeline

SETTINGS = {
    "diffusion_size": 32,
    "clip_size": 32,
    "clip_window": None,
    "templates": "name",
    "window": 3,
    "steps": 3,
    # so that random models give different labels to different places
    "seed_mode": "cross_attention",
    "seed_scale": 300.0,
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_stable_diffusion(folder / "diffusion")
    make_clip(folder / "clip")
    (folder / "config.json").write_text(NerveConfig(**SETTINGS).to_json())
    return folder


@pytest.fixture(scope="session")
def pipeline(models: Path) -> NervePipeline:
    return NervePipeline.from_pretrained(
        diffusion=models / "diffusion", clip=models / "clip", device="cpu", config=NerveConfig(**SETTINGS)
    )
