"""SigLIP as the source of seeds: its head on single patches, its text tower, and the pipeline with it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tests.segmentation.tiny_checkpoints import copy_with_config, make_siglip

from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.checkpoints.families import text_image_family
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.presets import CLIP, SIGLIP
from nerve_kernels.segmentation.text_image.siglip import DenseSiglip
from nerve_kernels.segmentation.text_image.vision import dense_embeddings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("siglip")
    make_siglip(made)
    return made


@pytest.fixture(scope="module")
def siglip(folder):
    return DenseSiglip.from_pretrained(folder, device="cpu")


@torch.no_grad()
def test_a_patch_is_what_the_head_makes_of_it_alone(siglip):
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    dense = dense_embeddings(siglip.model, pixels, features="query_key", residual=True, feed_forward=True)
    assert dense.shape == (2, 4, 6, 32)
    tower = siglip.model.vision_model
    tokens = tower(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    alone = tower.head(tokens.flatten(0, 1).unsqueeze(1))  # images of one patch
    expected = torch.nn.functional.normalize(alone, dim=-1).view(dense.shape)
    assert torch.allclose(dense, expected, atol=1e-5)


@torch.no_grad()
def test_names_are_what_the_model_says_of_padded_prompts(siglip):
    names = siglip.embed_names(["cat", "dog"], ["a photo of a {}."])
    prompts = ["a photo of a cat.", "a photo of a dog."]
    rows = siglip.tokenizer(prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    pooled = siglip.model.text_model(input_ids=rows.input_ids).pooler_output
    assert torch.allclose(names, torch.nn.functional.normalize(pooled, dim=-1), atol=1e-6)


def test_the_pipeline_takes_it_where_its_checkpoint_says_so(folder, clip_folder, diffusion_folder, wide_image):
    assert text_image_family(folder) == SIGLIP
    assert text_image_family(clip_folder) == CLIP
    config = NerveConfig(diffusion_size=64, clip_size=32, clip_window=16, clip_stride=8, window=3, templates="name")
    pipeline = NervePipeline.from_pretrained(diffusion=diffusion_folder, clip=folder, device="cpu", config=config)
    assert isinstance(pipeline.text_image, DenseSiglip)
    result = pipeline(wide_image, "cat, dog, grass")
    assert result.label_map.shape == (wide_image.height, wide_image.width)
    assert torch.isfinite(result.token_probabilities).all()
    assert pipeline.text_image.logit_scale > 0


def test_another_model_is_refused(clip_folder):
    with pytest.raises(ModelLoadError, match=r"clip: config\.json: expected model_type siglip, got clip"):
        DenseSiglip.from_pretrained(clip_folder, device="cpu")


def test_whole_images_and_windows_have_the_grid_of_patches(siglip):
    image = Image.new("RGB", (96, 64))
    found = siglip.embed_images([image], NerveConfig(clip_size=None, clip_window=None))[0]
    assert found.grid == (4, 6)


def test_images_and_words_of_different_widths_are_refused(folder, tmp_path):
    narrow = copy_with_config(folder, tmp_path / "narrow", "config.json", text_config__projection_size=24)
    with pytest.raises(ModelLoadError, match="expected images and words of one width, got 32 and 24"):
        DenseSiglip.from_pretrained(narrow, device="cpu")
