"""Random damage to features files: what loads is what was saved, everything else is a sentence with their name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.fuzz.judging import FUZZ

import nerve_kernels as nk
from nerve_kernels.segmentation import ImageFeatures, NerveConfig
from nerve_kernels.segmentation.feature_file import FORMAT, WITHOUT_CHECKSUM, _checksum, pack

GRID, PATCH_GRID, PIXELS = (3, 5), (2, 4), (12, 20)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)


@cache
def whole() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Small features with every part: two affinities, one of them mixed."""
    generator = torch.Generator().manual_seed(0)
    tokens = GRID[0] * GRID[1]
    dense = torch.rand(1, tokens, tokens, generator=generator)
    u = torch.rand(1, tokens, 4, generator=generator).softmax(-1)
    values = nk.LocalAffinity.from_dense(dense, grid=GRID, window=3).values
    tensors = {
        "image": torch.randint(0, 256, (*PIXELS, 3), dtype=torch.uint8, generator=generator),
        "patches": torch.nn.functional.normalize(torch.randn(8, 6, generator=generator), dim=1),
        "affinity.0.values": values,
        "affinity.0.u": u,
        "affinity.1.values": values.flip(1).flip(2),
    }
    config = NerveConfig(window=3, cells=2, beta=0.25)
    form = {"grid": list(GRID), "window": [3, 3], "cells": [2, 2], "beta": 0.25}
    description = {
        "config": json.loads(config.to_json()),
        "patch_grid": list(PATCH_GRID),
        "grid": list(GRID),
        "affinities": [
            {"settings": {"window": 3, "cells": 2, "beta": 0.25}, **form},
            {"settings": {"window": 3, "beta": 0.0}, **form, "cells": [0, 0], "beta": 0.0},
        ],
    }
    return tensors, description


def load(folder: Path, content: bytes) -> ImageFeatures | None:
    """The features; None where they were refused as they should be."""
    path = folder / "features.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        return ImageFeatures.load(path)
    except ValueError as error:
        assert str(error).startswith(f"path: {path} ")
        assert "\n" not in str(error)
        return None


def parts(features: ImageFeatures) -> list[torch.Tensor]:
    found = [features.patches.values]
    for affinity in features._affinities.values():
        found += [part for part in affinity.operator_arguments()[:3] if part is not None]
    return found


@FUZZ
@given(st.data())
def test_damaged_bytes_are_refused_or_change_nothing(tmp_path_factory, data):
    content = pack(*whole())
    header = 8 + int.from_bytes(content[:8], "little")
    loaded = load(
        tmp_path_factory.getbasetemp(),
        damaged_bytes(data.draw, content, mostly_before=data.draw(st.sampled_from([None, 8, header]))),
    )
    if loaded is not None:
        saved = load(tmp_path_factory.getbasetemp(), content)
        assert saved is not None
        assert (loaded.config, loaded.grid, loaded.patches.grid) == (saved.config, saved.grid, saved.patches.grid)
        for one, other in zip(parts(loaded), parts(saved), strict=True):
            assert torch.equal(one, other)


@st.composite
def damaged_parts(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, description = whole()
    tensors = dict(tensors)
    if draw(st.booleans()):
        description = damaged_json(draw, description)
    for name in draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2, unique=True)):
        how = draw(st.sampled_from(["gone", "scaled", "one value", "cut", "turned", "dtype", "another's", "batch"]))
        tensor = tensors[name]
        if how == "gone":
            del tensors[name]
        elif how == "scaled":
            tensors[name] = tensor * draw(st.sampled_from([0, -1, 10, 0.5, 1.01, 1e38, torch.nan]))
        elif how == "one value":
            tensors[name] = tensor.float().clone()
            at = draw(st.integers(0, tensor.numel() - 1))
            tensors[name].view(-1)[at] = draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, -1.0, 2.0, 1e-40]))
        elif how == "cut":
            tensors[name] = tensor.narrow(draw(st.integers(0, tensor.dim() - 1)), 0, draw(st.integers(0, 1)))
        elif how == "turned":
            tensors[name] = tensor.transpose(0, draw(st.integers(0, tensor.dim() - 1)))
        elif how == "dtype":
            tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
        elif how == "another's":
            tensors[name] = whole()[0][draw(st.sampled_from(sorted(whole()[0])))]
        else:
            tensors[name] = tensor.unsqueeze(0) if draw(st.booleans()) else tensor.repeat(2, *[1] * (tensor.dim() - 1))
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, description


@FUZZ
@given(damaged_parts(), st.booleans())
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_damaged_fields_are_refused_or_still_make_a_walk(tmp_path_factory, damaged, with_checksum):
    """Also of the first version, and with a checksum that is right: then the parts must fit together by themselves."""
    tensors, description = damaged
    text = json.dumps(description)  # with NaN, which `pack` would refuse to write
    metadata = {"format": WITHOUT_CHECKSUM, "description": text}
    if with_checksum:
        metadata |= {"format": FORMAT, "sha256": _checksum(tensors, text)}
    content = save(tensors, metadata)
    loaded = load(tmp_path_factory.getbasetemp(), content)
    if loaded is None:
        return
    assert loaded.patches.values.isfinite().all()
    assert loaded.patches.values.shape[0] == loaded.patches.grid[0] * loaded.patches.grid[1]
    for affinity in loaded._affinities.values():
        seeds = torch.eye(affinity.shape[1])[:, :3].softmax(-1)
        walked = nk.random_walk(seeds, affinity, alpha=0.9, steps=5, normalize=False)
        torch.testing.assert_close(walked.sum(-1), torch.ones(affinity.shape[1]), atol=0.1, rtol=0)
        assert (walked >= 0).all()


@FUZZ
@given(st.binary(max_size=300))
def test_files_of_anything_are_refused(tmp_path_factory, content):
    assert load(tmp_path_factory.getbasetemp(), content) is None
