"""Weights with NaN give an error that names the phase, and no label."""

from __future__ import annotations

import pytest
import torch
from tests.segmentation.tiny_checkpoints import (
    CLIP_WEIGHTS,
    TEXT_WEIGHTS,
    UNET_WEIGHTS,
    VAE_WEIGHTS,
    copy_with_config,
    copy_with_weights,
    spoilt,
)

from nerve_kernels.segmentation import NervePipeline
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.finite import NotFiniteError
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.text_image.clip import DenseClip


@pytest.mark.parametrize(
    ("file", "change", "phase"),
    [
        (CLIP_WEIGHTS, spoilt("visual_projection.weight"), "CLIP, image"),
        (CLIP_WEIGHTS, spoilt("vision_model.embeddings.patch_embedding.weight", torch.inf), "CLIP, image"),
        (CLIP_WEIGHTS, spoilt("text_projection.weight"), "CLIP, words"),
        (UNET_WEIGHTS, spoilt("conv_in.weight"), "Stable Diffusion"),
        (UNET_WEIGHTS, spoilt("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"), "Stable Diffusion"),
        (VAE_WEIGHTS, spoilt("quant_conv.bias"), "Stable Diffusion"),
    ],
)
def test_numbers_that_are_none_are_an_error_that_names_the_phase(
    clip_folder, diffusion_folder, clip, diffusion, tiny_config, wide_image, tmp_path, file, change, phase
):
    if file == CLIP_WEIGHTS:
        clip = DenseClip.from_pretrained(copy_with_weights(clip_folder, tmp_path / "copy", file, change), device="cpu")
    else:
        folder = copy_with_weights(diffusion_folder, tmp_path / "copy", file, change)
        diffusion = DiffusionFeatures.from_pretrained(folder, device="cpu")
    pipeline = NervePipeline(attention=diffusion, text_image=clip, config=tiny_config)
    for _ in range(2):  # what was not finite is not kept for the next call either
        with pytest.raises(NotFiniteError, match=f"^{phase}: expected finite numbers, got NaN or infinity in"):
            pipeline(wide_image, "cat, dog")


def test_a_walk_that_leaves_the_numbers_is_an_error(pipeline, wide_image, monkeypatch):
    monkeypatch.setattr("nerve_kernels.segmentation.pipeline.walk_seeds", lambda seeds, *others: seeds / 0 * 0)
    with pytest.raises(NotFiniteError, match=r"^random walk: "):
        pipeline(wide_image, "cat, dog")


def test_a_text_encoder_without_an_answer_is_not_loaded(diffusion_folder, tmp_path):
    def change(weights):
        name = next(key for key in weights if key.endswith("final_layer_norm.weight"))
        return spoilt(name)(weights)

    folder = copy_with_weights(diffusion_folder, tmp_path / "copy", TEXT_WEIGHTS, change)
    with pytest.raises(ModelLoadError, match=r"text encoder of \S+ answers NaN or infinity to the empty prompt"):
        DiffusionFeatures.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30, -1e30])
def test_a_scale_of_no_use_is_not_loaded(clip_folder, tmp_path, value):
    folder = copy_with_weights(clip_folder, tmp_path / "copy", CLIP_WEIGHTS, spoilt("logit_scale", value))
    with pytest.raises(ModelLoadError, match=r"clip: the logit_scale of \S+ gives \S+; expected a number > 0"):
        DenseClip.from_pretrained(folder, device="cpu")


def test_seeds_that_are_no_numbers_are_an_error(pipeline, wide_image, monkeypatch):
    monkeypatch.setattr("nerve_kernels.segmentation.pipeline.seeds_from_similarity", lambda s, **options: s / 0 * 0)
    with pytest.raises(NotFiniteError, match=r"^seeds: "):
        pipeline(wide_image, "cat, dog")


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_mean", None), ("image_mean", [0.5, 0.5]), ("image_mean", [float("nan")] * 3), ("image_std", ["a"] * 3)],
)
def test_pixels_are_normalised_by_three_finite_numbers(clip_folder, tmp_path, field, value):
    folder = copy_with_config(clip_folder, tmp_path / "copy", "preprocessor_config.json", **{field: value})
    with pytest.raises(ModelLoadError, match=f"{field}: expected 3 finite numbers, got "):
        DenseClip.from_pretrained(folder, device="cpu")


def test_pixels_are_not_divided_by_nothing(clip_folder, tmp_path):
    folder = copy_with_config(clip_folder, tmp_path / "copy", "preprocessor_config.json", image_std=[0.5, 0, 0.5])
    with pytest.raises(ModelLoadError, match="image_std: expected numbers > 0"):
        DenseClip.from_pretrained(folder, device="cpu")


def test_no_file_of_json_holds_what_is_no_json(pipeline, wide_image, tmp_path):
    from dataclasses import replace

    result = pipeline(wide_image, "cat, dog")
    broken = replace(result, token_probabilities=result.token_probabilities * torch.nan)
    with pytest.raises(ValueError, match="JSON"):
        broken.save(tmp_path / "x")
    assert not (tmp_path / "x.json").exists()
