"""Every field of the config changes what comes out: one that nothing reads would be a promise not kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from nerve_kernels import available_backends
from nerve_kernels._operators import dispatch
from nerve_kernels.segmentation import NerveConfig
from nerve_kernels.segmentation.config import AFFINITY_FIELDS, CLIP_FIELDS, DIFFUSION_FIELDS

LABELS = "cat, dog|puppy, grass"
# of each field a value unlike the tiny config's, and what else must be set for it to matter
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "diffusion_size": (32, {}),
    "timesteps": ((500,), {}),
    "layers": (("latent/2",), {}),
    "noise_seed": (7, {}),
    "clip_size": (48, {}),
    "clip_window": (16, {"clip_stride": 8}),
    "clip_stride": (16, {"clip_window": 16}),
    "dense_features": ("value", {}),
    "clip_residual": (True, {}),
    "clip_feed_forward": (True, {}),
    "templates": ("name", {}),
    "seed_mode": ("cross_attention", {}),
    "seed_scale": (3.0, {}),
    "background_words": (("sky",), {}),
    "probability_threshold": (1.0, {}),
    "criterion": ("uniform", {}),
    "temperature": (5.0, {}),
    "keep": (1, {}),
    "window": (5, {}),
    "cells": (1, {}),
    "global_sharpness": (4.0, {}),
    "beta": (0.0, {}),
    "walk": (False, {}),
    "alpha": (0.1, {}),
    "steps": (1, {}),
    "tolerance": (0.5, {}),
    "limit_walk": (True, {}),
    "refine_pixels": ("walk", {}),
    "refine_steps": (1, {"refine_pixels": "pamr"}),
    "refine_alpha": (0.1, {"refine_pixels": "walk"}),
    "backend": ("eager", {}),
}


def test_every_field_is_looked_at():
    fields = {field.name for field in dataclasses.fields(NerveConfig)}
    assert set(CHANGES) == fields
    assert {*AFFINITY_FIELDS, *CLIP_FIELDS, *DIFFUSION_FIELDS} <= fields


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_has_its_effect(pipeline, wide_image, name):
    value, needed = CHANGES[name]
    if name == "backend" and "cpp" not in available_backends():
        pytest.skip("needs a second backend")
    base = pipeline.config.replace(**{"clip_stride": 8, **needed})
    seen = []
    for config in (base, base.replace(**{name: value})):
        assert (getattr(config, name) == value) == bool(seen)
        with dispatch.recording_choices() as ran:
            result = pipeline.segment(pipeline.encode(wide_image, config=config), LABELS, config=config)
        seen.append((result, ran))
    (one, ran), (other, ran_too) = seen
    if name == "backend":
        assert {backend for _, backend in ran_too} == {"eager"} != {backend for _, backend in ran}
    elif name == "probability_threshold":
        assert (other.label_map == -1).all()
        assert (one.label_map >= 0).all()
    elif name == "background_words":
        assert other.labels == ("background", *one.labels)
    else:
        assert one.token_probabilities.shape != other.token_probabilities.shape or not torch.equal(
            one.token_probabilities, other.token_probabilities
        )
