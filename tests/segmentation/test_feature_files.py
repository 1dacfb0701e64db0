"""Features files that are damaged, or right in form and wrong in content, are refused in a sentence with their name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nerve_kernels.segmentation import ImageFeatures
from nerve_kernels.segmentation.feature_file import FORMAT, WITHOUT_CHECKSUM, pack

LABELS = "cat, dog|puppy, grass"


class Parts:
    """A features file taken apart, to be written again with a right checksum."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
            self.description: dict[str, Any] = json.loads(file.metadata()["description"])


@pytest.fixture
def saved(pipeline, wide_image, tmp_path) -> Path:
    return pipeline.encode(wide_image).save(tmp_path / "wide.safetensors")


def spoil(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Parts], None]:
    def apply(parts: Parts) -> None:
        parts.tensors[key] = change(parts.tensors[key])

    return apply


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = torch.nan
    return tensor


def describe(key: str, value: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.description.__setitem__(key, value)


def describe_affinity(key: str, value: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.description["affinities"][0].__setitem__(key, value)


def swap(key: str) -> Callable[[Parts], None]:
    return lambda parts: parts.description.__setitem__(key, parts.description[key][::-1])


def swap_everywhere(parts: Parts) -> None:
    swap("grid")(parts)
    parts.description["affinities"][0]["grid"].reverse()


WRONG: dict[str, tuple[Callable[[Parts], None], str]] = {
    "NaN in the local values": (spoil("affinity.0.values", with_nan), "no value below 0, got one or NaN"),
    "NaN in the factor": (spoil("affinity.0.u", with_nan), "no value below 0, got one or NaN"),
    "NaN in the patches": (spoil("patches", with_nan), "at most unit length"),
    "10 × values": (spoil("affinity.0.values", lambda v: 10 * v), "rows that sum to 1, got sums of 10 to 10"),
    "10 × the factor": (spoil("affinity.0.u", lambda u: 10 * u), "rows that sum to 1"),
    "10 × patches": (spoil("patches", lambda p: 10 * p), "at most unit length"),
    "infinite values": (spoil("affinity.0.values", lambda v: v + torch.inf), "rows that sum to 1"),
    "negative values": (spoil("affinity.0.values", lambda v: -v), "no value below 0"),
    "a row too few": (spoil("affinity.0.values", lambda v: v[:, 1:]), "tokens as values has"),
    "a column too few": (spoil("affinity.0.values", lambda v: v[..., 1:]), "columns for window"),
    "cells that are not there": (spoil("affinity.0.u", lambda u: u[..., 1:]), "columns for cells"),
    "two batches": (spoil("affinity.0.u", lambda u: u.repeat(2, 1, 1)), "expected a batch of 1, got 2"),
    "whole numbers": (spoil("affinity.0.u", lambda u: u.long()), "u: expected float32"),
    "a patch too few": (spoil("patches", lambda p: p[1:]), "patches: expected floats"),
    "patches of no width": (spoil("patches", lambda p: p[:, :0]), "at most unit length"),
    "4 channels": (spoil("image", lambda p: torch.cat([p, p[..., :1]], -1)), r"expected uint8 \(H, W, 3\)"),
    "no pixels": (spoil("image", lambda p: p[:0]), r"expected uint8 \(H, W, 3\)"),
    "grey": (spoil("image", lambda p: p[..., 0]), r"expected uint8 \(H, W, 3\)"),
    "floating-point pixels": (spoil("image", lambda p: p.float()), r"expected uint8 \(H, W, 3\)"),
    "an upright image": (spoil("image", lambda p: p.transpose(0, 1)), "rows and columns as in an image"),
    "the patch grid's sides swapped": (swap("patch_grid"), "patch_grid: expected rows and columns"),
    "the grid's sides swapped": (swap_everywhere, "grid: expected rows and columns"),
    "one grid's sides swapped": (swap("grid"), "grid: expected"),
    "no grid": (describe("grid", None), "grid: expected that of the walk, got none"),
    "a grid of text": (describe("grid", "6x9"), "grid: expected two counts"),
    "a grid of three": (describe("grid", [6, 9, 1]), "grid: expected two counts"),
    "a grid of fractions": (describe("grid", [6.0, 9.0]), "grid: expected two counts"),
    "a huge grid": (describe("grid", [10**30, 1]), "grid: expected two counts"),
    "an empty patch grid": (describe("patch_grid", [0, 0]), "patch_grid: expected two counts"),
    "another beta": (describe_affinity("beta", 0.25), "the parts for beta="),
    "no beta": (lambda parts: parts.description["affinities"][0].pop("beta"), "it lacks 'beta'"),
    "no window": (lambda parts: parts.description["affinities"][0].pop("window"), "it lacks 'window'"),
    "an even window": (describe_affinity("window", [2, 2]), "window"),
    "no settings": (lambda parts: parts.description["affinities"][0].pop("settings"), "it lacks 'settings'"),
    "unknown settings": (describe_affinity("settings", {"aplha": 1}), "unknown field 'aplha'"),
    "settings that are none": (describe_affinity("settings", 3), "is damaged"),
    "affinities that are none": (describe("affinities", 3), "is damaged"),
    "an affinity that is none": (describe("affinities", ["a"]), "is damaged"),
    "no config": (lambda parts: parts.description.pop("config"), "it lacks 'config'"),
    "a wrong config": (describe("config", {"alpha": 3}), "alpha: expected a number in .*, got 3"),
    "a config that is none": (describe("config", [1]), "expected an object of fields"),
    "no patches": (lambda parts: parts.tensors.pop("patches"), "it lacks 'patches'"),
    "no image": (lambda parts: parts.tensors.pop("image"), "it lacks 'image'"),
    "no local values": (lambda parts: parts.tensors.pop("affinity.0.values"), "the parts for beta="),
    "no factor": (lambda parts: parts.tensors.pop("affinity.0.u"), "the parts for beta="),
}


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        ImageFeatures.load(path)
    message = str(caught.value)
    assert message.startswith(f"path: {path} ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("version", [FORMAT, WITHOUT_CHECKSUM])
def test_what_does_not_fit_together_is_refused_in_a_sentence(saved, name, version):
    parts = Parts(saved)
    change, wanted = WRONG[name]
    change(parts)
    if version == FORMAT:
        saved.write_bytes(pack(parts.tensors, parts.description))
    else:
        metadata = {"format": WITHOUT_CHECKSUM, "description": json.dumps(parts.description)}
        save_file({key: tensor.contiguous() for key, tensor in parts.tensors.items()}, saved, metadata)
    message = refusal(saved)
    assert re.search(wanted, message), message


def test_a_file_of_the_first_version_gives_the_same_segmentation(pipeline, wide_image, saved):
    parts = Parts(saved)
    save_file(parts.tensors, saved, {"format": WITHOUT_CHECKSUM, "description": json.dumps(parts.description)})
    loaded = ImageFeatures.load(saved)
    wanted = pipeline(wide_image, LABELS)
    assert torch.equal(pipeline.segment(loaded, LABELS).token_probabilities, wanted.token_probabilities)


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_rows_may_be_off_by_what_their_storage_rounds(saved, storage):
    parts = Parts(saved)
    for key in ("affinity.0.values", "affinity.0.u"):
        parts.tensors[key] = parts.tensors[key].to(storage)
    saved.write_bytes(pack(parts.tensors, parts.description))
    assert ImageFeatures.load(saved).affinity(ImageFeatures.load(saved).config) is not None
    parts.tensors["affinity.0.u"] = (parts.tensors["affinity.0.u"].float() * 1.05).to(storage)
    saved.write_bytes(pack(parts.tensors, parts.description))
    assert "rows that sum to 1" in refusal(saved)


def test_one_changed_bit_is_damage(saved):
    """The least bit of a pixel: right in form, and not what was saved."""
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    assert "its checksum differs" in refusal(saved)


@pytest.mark.parametrize("description", ["", "{", "[]", "3", "null", "[" * 100_000, '{"config": {}}'])
def test_a_description_that_is_none(saved, description):
    save_file(Parts(saved).tensors, saved, {"format": WITHOUT_CHECKSUM, "description": description})
    refusal(saved)


def test_no_description_at_all(saved):
    save_file(Parts(saved).tensors, saved, {"format": WITHOUT_CHECKSUM})
    refusal(saved)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "absent", "."):
        with pytest.raises(FileNotFoundError, match=r"path: .* is no file"):
            ImageFeatures.load(tmp_path / name)
