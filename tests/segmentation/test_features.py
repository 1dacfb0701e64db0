"""Features of an image in a file, and what new words on them cost."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from safetensors.torch import save_file
from tests.segmentation.tiny_checkpoints import CLIP_WEIGHTS, copy_with_weights, spoilt

import nerve_kernels as nk
from nerve_kernels.segmentation import ImageFeatures, NervePipeline
from nerve_kernels.segmentation.config import AFFINITY_FIELDS

LABELS = "cat, dog|puppy, grass"


@pytest.mark.parametrize(
    "changes",
    [{}, {"beta": 0.0, "window": (3, 5)}, {"beta": 1.0, "cells": (3, 4)}, {"walk": False}],
    ids=["mixed", "local", "global", "no walk"],
)
def test_a_file_gives_the_same_segmentation_to_the_bit(pipeline, wide_image, tmp_path, changes):
    config = pipeline.config.replace(**changes)
    features = pipeline.encode(wide_image, config=config)
    loaded = ImageFeatures.load(features.save(tmp_path / "made" / "wide.safetensors"))
    assert loaded.config == config
    assert loaded.image.tobytes() == wide_image.tobytes()
    for words in (LABELS, "sky, grass"):
        one, other = pipeline.segment(features, words), pipeline.segment(loaded, words)
        assert torch.equal(one.token_probabilities, other.token_probabilities)
        assert torch.equal(one.label_map, other.label_map)


def test_every_affinity_built_so_far_is_in_the_file(pipeline, wide_image, tmp_path):
    features = pipeline.encode(wide_image)
    local = pipeline.config.replace(beta=0.0)
    wanted = pipeline.segment(features, LABELS, config=local)
    loaded = ImageFeatures.load(features.save(tmp_path / "two.safetensors"))
    assert torch.equal(pipeline.segment(loaded, LABELS, config=local).label_map, wanted.label_map)
    with pytest.raises(ValueError, match="encode the image again"):
        pipeline.segment(loaded, LABELS, config=pipeline.config.replace(beta=0.25))


def test_affinities_that_share_their_parts_are_all_in_the_file(pipeline, wide_image, tmp_path):
    features = pipeline.encode(wide_image)
    configs = [pipeline.config.replace(beta=0.1 * number) for number in range(9)]
    dense = [features.affinity(config).to_dense() for config in configs]
    loaded = ImageFeatures.load(features.save(tmp_path / "ten.safetensors"))
    for config, wanted in zip(configs, dense, strict=True):
        assert torch.equal(loaded.affinity(config).to_dense(), wanted)


def test_explicit_factors_survive(pipeline, wide_image, tmp_path):
    features = pipeline.encode(wide_image).without_layers()
    tokens = features.grid[0] * features.grid[1]
    u = torch.rand(1, tokens, 4).softmax(-1)
    features._affinities.clear()
    key = tuple(getattr(pipeline.config.replace(beta=1.0), name) for name in AFFINITY_FIELDS)
    features._affinities[key] = nk.LowRankAffinity(u, torch.rand(1, tokens, 4).softmax(1), grid=features.grid)
    loaded = ImageFeatures.load(features.save(tmp_path / "factors.safetensors"))
    assert torch.equal(loaded._affinities[key].to_dense(), features._affinities[key].to_dense())


def test_new_words_run_no_model_but_the_text_tower(pipeline, wide_image, monkeypatch):
    features = pipeline.encode(wide_image)
    runs: list[str] = []
    watched = {
        "unet": pipeline.attention.unet,
        "vae": pipeline.attention.vae,
        "vision": pipeline.text_image.model.vision_model,
        "text": pipeline.text_image.model.text_model.final_layer_norm,  # its parts are driven one by one
    }
    handles = [
        module.register_forward_hook(lambda *_, name=name: runs.append(name)) for name, module in watched.items()
    ]
    monkeypatch.setattr(nk, "attention_entropy", None)
    monkeypatch.setattr(nk, "local_affinity", None)
    pipeline.segment(features, "a word never asked before, another one")
    pipeline.segment(features, "a word never asked before, another one")
    for handle in handles:
        handle.remove()
    assert runs == ["text"]  # and words asked before cost only the walk


def test_words_of_other_weights_are_refused(pipeline, clip_folder, wide_image, tmp_path):
    from nerve_kernels.segmentation.text_image.clip import DenseClip

    folder = copy_with_weights(clip_folder, tmp_path / "other", CLIP_WEIGHTS, spoilt("text_projection.weight", 0.5))
    others = NervePipeline(
        attention=pipeline.attention,
        text_image=DenseClip.from_pretrained(folder, device="cpu"),
        config=pipeline.config,
    )
    made = pipeline.encode(wide_image)
    loaded = ImageFeatures.load(made.save(tmp_path / "wide.safetensors"))
    for features in (made, loaded, loaded.without_layers()):
        with pytest.raises(ValueError, match=r"features: expected the text and image model that made their patches"):
            others.segment(features, LABELS)
    # the same weights in another object are the same weights
    again = NervePipeline(
        attention=pipeline.attention,
        text_image=DenseClip.from_pretrained(clip_folder, device="cpu"),
        config=pipeline.config,
    )
    wanted = pipeline.segment(made, LABELS).token_probabilities
    torch.testing.assert_close(again.segment(loaded, LABELS).token_probabilities, wanted)


def test_weights_in_another_dtype_are_a_warning(pipeline, clip_folder, wide_image, tmp_path):
    from nerve_kernels.segmentation.text_image.clip import DenseClip

    loaded = ImageFeatures.load(pipeline.encode(wide_image).save(tmp_path / "wide.safetensors"))
    half = NervePipeline(
        attention=pipeline.attention,
        text_image=DenseClip.from_pretrained(clip_folder, device="cpu", dtype="bfloat16"),
        config=pipeline.config,
    )
    with pytest.warns(UserWarning, match=r"features: made in another dtype, .* in float32, got \w+ in bfloat16"):
        half.segment(loaded, LABELS)


def test_files_that_do_not_say_what_made_them_are_taken(pipeline, wide_image, tmp_path):
    """As those of earlier versions."""
    from dataclasses import replace

    features = pipeline.encode(wide_image)
    old = ImageFeatures.load(replace(features, made_by=None).save(tmp_path / "old.safetensors"))
    assert old.made_by is None
    assert torch.equal(pipeline.segment(old, LABELS).label_map, pipeline.segment(features, LABELS).label_map)


def test_what_is_no_such_file_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match=r"text\.safetensors is no safetensors file"):
        ImageFeatures.load(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors holds the format None"):
        ImageFeatures.load(tmp_path / "other.safetensors")


def test_a_failed_write_leaves_the_old_file(pipeline, wide_image, tmp_path, monkeypatch):
    features = pipeline.encode(wide_image, config=pipeline.config.replace(walk=False))
    path = features.save(tmp_path / "kept.safetensors")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        features.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_limit_of_the_walk(pipeline, wide_image):
    features = pipeline.encode(wide_image)
    limit = pipeline.segment(features, LABELS, config=pipeline.config.replace(limit_walk=True))
    nearly = pipeline.segment(features, LABELS, config=pipeline.config.replace(steps=400))
    near = pipeline.segment(features, LABELS, config=pipeline.config.replace(steps=2))
    torch.testing.assert_close(limit.token_probabilities, nearly.token_probabilities, atol=1e-5, rtol=0)
    assert (limit.token_probabilities - near.token_probabilities).abs().max() > 1e-3
