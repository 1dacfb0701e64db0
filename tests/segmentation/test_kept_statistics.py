"""Statistics in a file of features: every affinity that they allow is as it would have been, and no other is given."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from tests.segmentation.test_feature_files import Parts, describe, refusal, spoil, with_nan

from nerve_kernels.segmentation import ImageFeatures
from nerve_kernels.segmentation.feature_file import pack

POSSIBLE = [
    {},
    {"temperature": 0.3},
    {"criterion": "uniform"},
    {"criterion": "cell_information"},
    {"keep": 1},
    {"beta": 0.0},
    {"beta": 1.0},
]
IMPOSSIBLE = {
    "window": {"window": 5},
    "cells": {"cells": 2},
    "global_sharpness": {"global_sharpness": 2.0},
    "criterion": {"criterion": "information"},
}


@pytest.fixture
def features(pipeline, wide_image) -> ImageFeatures:
    return pipeline.encode(wide_image)


@pytest.fixture
def saved(features, tmp_path):
    return features.save(tmp_path / "features.safetensors", statistics=True)


@pytest.mark.parametrize("change", POSSIBLE, ids=str)
def test_other_weights_and_shares_are_those_of_the_image_encoded_anew(pipeline, features, saved, change):
    config = pipeline.config.replace(**change)
    loaded = ImageFeatures.load(saved)
    assert torch.equal(loaded.affinity(config).to_dense(), features.affinity(config).to_dense())
    one, other = (pipeline.segment(each, "a, b", config=config) for each in (loaded, features))
    assert torch.equal(one.label_map, other.label_map)


@pytest.mark.parametrize("field", IMPOSSIBLE)
def test_what_the_statistics_do_not_hold_is_refused(pipeline, saved, field):
    config = pipeline.config.replace(**IMPOSSIBLE[field])
    with pytest.raises(ValueError, match=rf"config: {field} is .*, but the statistics in the file .*; encode"):
        ImageFeatures.load(saved).affinity(config)


def test_affinities_of_other_windows_in_the_file_are_still_there(pipeline, features, tmp_path):
    other = pipeline.config.replace(window=5)
    expected = features.affinity(other)
    loaded = ImageFeatures.load(features.save(tmp_path / "both.safetensors", statistics=True))
    assert torch.equal(loaded.affinity(other).to_dense(), expected.to_dense())


def test_a_file_is_saved_once_more_with_what_it_had(pipeline, saved, tmp_path):
    config = pipeline.config.replace(temperature=0.3)
    first = ImageFeatures.load(saved)
    again = ImageFeatures.load(first.save(tmp_path / "again.safetensors", statistics=True))
    assert torch.equal(again.affinity(config).to_dense(), first.affinity(config).to_dense())
    with pytest.raises(ValueError, match="hold no queries and keys"):
        ImageFeatures.load(again.without_layers().save(tmp_path / "less.safetensors")).affinity(
            pipeline.config.replace(temperature=0.4)
        )


def test_statistics_are_written_on_request_only(features, tmp_path):
    with safe_open(features.save(tmp_path / "small.safetensors"), framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("statistics")]  # noqa: SIM118
        assert json.loads(file.metadata()["description"])["statistics"] is None


def test_statistics_that_are_too_large_are_refused_before_anything_is_written(features, tmp_path, monkeypatch):
    monkeypatch.setenv("NERVE_KERNELS_STATISTICS_MEMORY", "0")
    with pytest.raises(ValueError, match=r"statistics: expected features with queries and keys, .*STATISTICS_MEMORY"):
        features.save(tmp_path / "none.safetensors", statistics=True)
    assert not list(tmp_path.iterdir())


def form(key: str, value):
    return lambda parts: parts.description["statistics"].__setitem__(key, value)


WRONG = {
    "NaN": (spoil("statistics.0.local", with_nan), "expected finite floats"),
    "infinite entropy": (spoil("statistics.0.entropy", lambda e: e + torch.inf), "expected finite floats"),
    "10 × shares": (spoil("statistics.0.pooled", lambda p: 10 * p), "pooled: expected rows that sum to 1"),
    "10 × the window": (spoil("statistics.0.local", lambda p: p * 0 + 1), "expected shares of attention"),
    "negative shares": (spoil("statistics.0.local", lambda p: -p), "expected shares of attention"),
    "a head too few": (spoil("statistics.0.lse", lambda p: p[:, 1:]), "lse: expected finite floats"),
    "whole numbers": (spoil("statistics.0.lse", lambda p: p.long()), "lse: expected finite floats"),
    "a layer that is gone": (lambda parts: parts.tensors.pop("statistics.0.local"), "it lacks"),
    "no cells": (lambda parts: parts.description["statistics"].pop("cells"), "it lacks 'cells'"),
    "other cells": (form("cells", [1, 1]), "pooled: expected finite floats"),
    "an even window": (form("window", [2, 2]), "window: expected odd"),
    "another window": (form("window", [5, 5]), "windows: expected the reach of"),
    "no layers": (form("grids", []), "windows: expected one for each of the 0 layers"),
    "a finer layer": (form("grids", [[64, 64]]), "grids: expected none finer|windows: expected one for each"),
    "a sharpness of 0": (form("global_sharpness", 0), "global_sharpness: expected"),
    "a form that is none": (describe("statistics", 3), "is damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_refused(saved, name):
    parts = Parts(saved)
    change, message = WRONG[name]
    change(parts)
    saved.write_bytes(pack(parts.tensors, parts.description))
    assert re.search(message, refusal(saved)), refusal(saved)
