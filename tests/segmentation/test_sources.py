"""The seams for other families of models: what is behind them is nobody else's matter, and a new one fits in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.segmentation.stub_family import ColourAttention, ColourNames
from tests.segmentation.tiny_checkpoints import make_clip, make_stable_diffusion

from nerve_kernels.evaluation.labelled_images import LabelledImage, LabelledImages
from nerve_kernels.evaluation.scorer import Scorer
from nerve_kernels.segmentation import ImageFeatures, NerveConfig, NervePipeline, Preset, presets
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.text_image.clip import DenseClip

PACKAGE = Path(presets.__file__).parents[1]
ROOMS = (PACKAGE / "segmentation/attention", PACKAGE / "segmentation/text_image")
INTERNALS = {"unet", "vae", "scheduler", "empty_prompt", "clip", "tokenizer", "modules"}
FAMILIES = {"diffusion", "clip", "vision", "text_tower", "prefix_tree"}
CONFIG = NerveConfig(timesteps=(0,), window=5, cells=4, steps=5, alpha=0.9)


def touched(source: str) -> set[str]:
    """Attributes of models that are read, and modules of families that are imported."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}  # array.clip(0, 255)
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in INTERNALS and id(node) not in called
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        else:
            continue
        if {"attention", "text_image"}.intersection(names):
            found |= FAMILIES.intersection(names)
    return found


def test_what_is_behind_the_seams_is_touched_nowhere_else():
    seen = {}
    # of a preset and of options these are names of checkpoints
    harmless = {"preset.clip", "chosen.clip", "preset.diffusion", "options.clip", "options.diffusion"}
    for path in PACKAGE.rglob("*.py"):
        if not any(room in path.parents for room in ROOMS):
            source = path.read_text()
            for name in harmless:
                source = source.replace(name, "checkpoint")
            seen[str(path.relative_to(PACKAGE))] = touched(source)
    assert len(seen) > 80
    assert {path: names for path, names in seen.items() if names} == {}


def test_the_search_finds_what_it_looks_for():
    assert touched("pipeline.attention.unet.dtype") == {"unet"}
    assert touched("from nerve_kernels.segmentation.text_image.clip import DenseClip") == {"clip"}
    assert touched("from .attention import diffusion") == {"diffusion"}
    assert touched("import nerve_kernels.segmentation.attention.diffusion as d") == {"diffusion"}
    assert touched("values.clip(0, 255)") == set()
    assert all(any(touched(path.read_text()) for path in room.glob("*.py")) for room in ROOMS)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> NervePipeline:
    preset = Preset(
        diffusion="colours",
        clip="names of colours",
        description="",
        settings={"timesteps": (0,), "window": 5, "cells": 4, "steps": 5},
        attention_family="tests.segmentation.stub_family:ColourAttention",
        text_image_family="tests.segmentation.stub_family:ColourNames",
    )
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "colours": preset})
    return NervePipeline.from_preset("colours")


@pytest.fixture
def flag() -> Image.Image:
    image = Image.new("RGB", (64, 48), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 48))
    return image


def test_another_family_is_one_file_and_a_preset(colours, flag, tmp_path):
    assert isinstance(colours.attention, ColourAttention)
    assert isinstance(colours.text_image, ColourNames)
    found = colours(flag, "red, blue").label_map
    assert found[:, :31].eq(0).all()
    assert found[:, 33:].eq(1).all()
    features = colours.encode(flag)
    again = ImageFeatures.load(features.save(tmp_path / "flag.safetensors"))
    assert torch.equal(colours.segment(again, "red, blue").label_map, found)
    with pytest.raises(ValueError, match="colours have no noise"):
        colours(flag, "red, blue", timesteps=(5,))


class Flags(LabelledImages[LabelledImage]):
    """One image of known colours."""

    name, names, identifiers = "flags", (("red",), ("blue",)), ("flag",)

    def __init__(self, image: Image.Image) -> None:
        self._image = image

    def __getitem__(self, index: int) -> LabelledImage:
        mask = torch.zeros(48, 64, dtype=torch.uint8)
        mask[:, 32:] = 1
        return LabelledImage(self._image, mask.numpy(), "flag")


def test_another_family_is_scored(colours, flag):
    scorer = Scorer(colours, Flags(flag), {"method": colours.config})
    assert scorer.description["models"] == {"attention": "colours-1", "text_image": "colour-names-1"}
    (entries,) = scorer.record(0, Flags(flag)[0]).counts
    right = sum(pixels for cell, pixels in entries if cell in (0, 3))  # of 2 × 2 cells the diagonal
    assert right >= 0.95 * 48 * 64


def fingerprints(folder: Path) -> tuple[str, str]:
    one = DiffusionFeatures.from_pretrained(folder / "diffusion", device="cpu")
    other = DenseClip.from_pretrained(folder / "clip", device="cpu")
    return one.fingerprint(), other.fingerprint()


def test_a_fingerprint_is_that_of_the_weights_wherever_they_lie(tmp_path):
    for name in ("one", "copy"):
        make_stable_diffusion(tmp_path / name / "diffusion")
        make_clip(tmp_path / name / "clip")
    first = fingerprints(tmp_path / "one")
    assert first == fingerprints(tmp_path / "copy")
    assert len(set(first)) == 2
    assert all(len(digest) == 32 for digest in first)


def test_a_fingerprint_follows_one_changed_bit_and_goes_back(diffusion_folder, clip_folder):
    attention = DiffusionFeatures.from_pretrained(diffusion_folder, device="cpu")
    text_image = DenseClip.from_pretrained(clip_folder, device="cpu")
    for source, weight in (
        (attention, attention.unet.conv_in.weight),
        (attention, attention.vae.encoder.conv_in.weight),
        (text_image, text_image.model.visual_projection.weight),
    ):
        before = source.fingerprint()
        with torch.no_grad():
            first = (0,) * weight.dim()
            value = weight[first].clone()
            weight[first] = torch.nextafter(value, torch.tensor(torch.inf))
            assert source.fingerprint() != before
            weight[first] = value
        assert source.fingerprint() == before


def test_a_fingerprint_knows_what_no_weight_holds(clip, diffusion):
    other = DenseClip(model=clip.model, tokenizer=clip.tokenizer, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert other.fingerprint() != clip.fingerprint()
    parts = {"unet": diffusion.unet, "vae": diffusion.vae, "scheduler": diffusion.scheduler}
    other = DiffusionFeatures(**parts, empty_prompt=diffusion.empty_prompt + 1)
    assert other.fingerprint() != diffusion.fingerprint()
