"""Random damage to checkpoints: refused by name, an error that names the phase, or the answer of the intact ones."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of the hub's libraries is imported

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz.judging import FUZZ
from tests.segmentation.tiny_checkpoints import (
    CLIP_WEIGHTS,
    TEXT_WEIGHTS,
    UNET_WEIGHTS,
    VAE_WEIGHTS,
    make_clip,
    make_stable_diffusion,
)

from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.finite import NotFiniteError
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.text_image.clip import DenseClip

CONFIGS = (
    "config.json",
    "preprocessor_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
ODD_SIZES: tuple[Any, ...] = (
    None, 0, -1, 1, 2, 3, 5, 7, 16, 64, 1000, 10**4, 10**5, 10**6, 10**9, 10**18, 10**40, -(10**9), 0.5, 1e9, 1e300,
    math.nan, math.inf, -math.inf, True, False, "", "64", "cat", [], [0], [1, 2], [10**9, 10**9], [None], {}, {"a": 1},
)  # fmt: skip
ODD_NUMBERS = (math.nan, math.inf, -math.inf, 3e38)
LABELS = "cat, dog, grass"


class Checkpoints:
    """Two intact checkpoints, their weights and models, and the answer that they give."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.folder = folder / "intact"
        self.damaged = folder / "damaged"
        make_stable_diffusion(self.folder / "diffusion")
        make_clip(self.folder / "clip")
        self.weights = {
            file: load_file(self.path(file)) for file in (CLIP_WEIGHTS, TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS)
        }
        self.configs = {file: json.loads(self.path(file).read_text()) for file in CONFIGS}
        self.diffusion = DiffusionFeatures.from_pretrained(self.folder / "diffusion", device="cpu")
        self.clip = DenseClip.from_pretrained(self.folder / "clip", device="cpu")
        self.image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8))
        self.answer = self.segment(self.diffusion, self.clip)

    @staticmethod
    def part(file: str) -> str:
        return "diffusion" if "/" in file else "clip"

    def path(self, file: str) -> Path:
        return self.folder / self.part(file) / file

    def segment(self, diffusion: DiffusionFeatures, clip: DenseClip) -> torch.Tensor:
        config = NerveConfig(
            diffusion_size=32, clip_size=32, clip_window=None, templates="name", window=3, steps=3, timesteps=(100,)
        )
        return NervePipeline(attention=diffusion, text_image=clip, config=config)(
            self.image, LABELS
        ).token_probabilities

    def judge(self, file: str) -> torch.Tensor | None:
        """Load the damaged copy and segment: what the command reports in a line gives None, all else is raised."""
        part = self.part(file)
        diffusion, clip = self.diffusion, self.clip
        try:
            if part == "clip":
                clip = DenseClip.from_pretrained(self.damaged, device="cpu")
            else:
                diffusion = DiffusionFeatures.from_pretrained(self.damaged, device="cpu")
        except ModelLoadError as error:
            assert str(error).startswith(f"{part}: ")
            assert len(str(error).splitlines()) == 1
            return None
        except ValueError as error:  # a model that is no Stable Diffusion 1.x or 2.x
            assert str(error).startswith("diffusion: ")
            return None
        try:
            found = self.segment(diffusion, clip)
        except (ModelLoadError, NotFiniteError, ValueError, RuntimeError) as error:
            assert str(error).strip()
            return None
        assert found.isfinite().all()
        return found

    def copy(self, file: str) -> Path:
        shutil.rmtree(self.damaged, ignore_errors=True)
        shutil.copytree(self.folder / self.part(file), self.damaged)
        return self.damaged / file


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@st.composite
def damaged_weights(draw: st.DrawFn, weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Some keys dropped, renamed, of another shape, or with numbers that are none; whether one is still to be had."""
    damaged, complete = dict(weights), True
    for name in draw(st.lists(st.sampled_from(sorted(weights)), min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["drop", "rename", "cut", "flatten", "number", "whole", "add"]))
        tensor = damaged.pop(name)
        if kind == "rename":
            damaged[draw(st.sampled_from(["", "x.", "model."])) + name[draw(st.integers(1, 3)) :]] = tensor
        elif kind == "cut" and tensor.dim():
            damaged[name] = tensor[: draw(st.integers(0, max(0, len(tensor) - 1)))].clone()
        elif kind == "flatten" and tensor.dim() != 1:
            damaged[name] = tensor.flatten().clone()
        elif kind in ("number", "whole"):
            changed = tensor.clone()
            place = draw(st.integers(0, tensor.numel() - 1)) if kind == "number" else slice(None)
            changed.view(-1)[place] = draw(st.sampled_from(ODD_NUMBERS))
            damaged[name] = changed
        elif kind == "add":
            damaged[name] = tensor
            damaged[draw(st.sampled_from(["ema.x", "position_ids", f"{name}.extra"]))] = torch.zeros(2)
        complete &= name in damaged and damaged[name].shape == tensor.shape
    return damaged, complete


@FUZZ
@given(st.data(), st.sampled_from([CLIP_WEIGHTS, TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS]))
def test_any_damage_to_weights(checkpoints, data, file):
    from safetensors.torch import save_file

    damaged, complete = data.draw(damaged_weights(checkpoints.weights[file]))
    save_file(damaged, checkpoints.copy(file), {"format": "pt"})
    found = checkpoints.judge(file)
    if not complete:
        assert found is None, "an answer from weights that are not all there"
    elif found is not None and all(
        tensor.isfinite().all() and tensor.abs().max() < 1e30 for tensor in damaged.values()
    ):
        torch.testing.assert_close(found, checkpoints.answer)


def fields(config: dict[str, Any], inside: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path to every field of a config, those of objects within it too."""
    found: list[tuple[str, ...]] = []
    for name, value in config.items():
        found.append((*inside, name))
        if isinstance(value, dict):
            found += fields(value, (*inside, name))
    return found


@FUZZ
@given(st.data(), st.sampled_from(CONFIGS))
def test_any_damage_to_a_config(checkpoints, data, file):
    config = json.loads(json.dumps(checkpoints.configs[file]))
    for path in data.draw(st.lists(st.sampled_from(fields(config)), min_size=1, max_size=2, unique=True)):
        *outer, field = path
        inner = config
        for step in outer:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            continue
        if data.draw(st.integers(0, 4)):
            inner[field] = data.draw(st.sampled_from(ODD_SIZES))
        else:
            inner.pop(field, None)
    checkpoints.copy(file).write_text(json.dumps(config))
    checkpoints.judge(file)


@FUZZ
@given(
    st.sampled_from([*CONFIGS, CLIP_WEIGHTS, UNET_WEIGHTS, "tokenizer_config.json", "tokenizer.json"]),
    st.binary(max_size=64),
)
def test_any_bytes_in_place_of_a_file(checkpoints, file, content):
    checkpoints.copy(file).write_bytes(content)
    checkpoints.judge(file)
