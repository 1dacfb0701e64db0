"""open_clip checkpoints as the source of seeds, against what the library itself says of images and prompts."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.segmentation.text_image import open_clip_reference as reference
from tests.segmentation.tiny_checkpoints import copy_with_config, copy_with_weights, make_tokenizer, spoilt
from torch.nn import functional

from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.checkpoints.families import text_image_family
from nerve_kernels.segmentation.checkpoints.open_clip import CONFIG, PICKLE, WEIGHTS
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.presets import CLIP, OPEN_CLIP
from nerve_kernels.segmentation.text_image.open_clip import DenseOpenClip
from nerve_kernels.segmentation.text_image.vision import dense_embeddings

EXPECTED = load_file(reference.FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("open_clip")
    for name in (CONFIG, WEIGHTS):
        shutil.copy(reference.FOLDER / name, made)
    make_tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def open_clip(folder):
    return DenseOpenClip.from_pretrained(folder, device="cpu")


def changed(folder, target, **changes):
    return copy_with_config(folder, target, CONFIG, **changes)


@torch.no_grad()
def assert_as_the_library(loaded, name=""):
    tower = loaded.model.vision_model(pixel_values=reference.pixels())
    images = functional.normalize(loaded.model.visual_projection(tower.pooler_output), dim=-1)
    assert torch.allclose(images, EXPECTED[f"{name}image"], atol=1e-6)
    names = loaded.embed_names(reference.TEXTS, ["{}"])  # through the tree of prompts, whose beginnings are shared
    assert torch.allclose(names, EXPECTED[f"{name}text"], atol=1e-6)


def test_images_and_prompts_are_embedded_as_the_library_does(open_clip):
    assert_as_the_library(open_clip)
    assert open_clip.logit_scale == pytest.approx(20.0855, abs=1e-3)


def test_a_text_tower_of_its_own_class_and_the_other_activation(folder, tmp_path):
    settings = {"model_cfg__custom_text": True, "model_cfg__quick_gelu": False}
    copy = changed(folder, tmp_path / "custom", **settings)
    shutil.copy(reference.FOLDER / f"custom_text.{WEIGHTS}", copy / WEIGHTS)
    assert_as_the_library(DenseOpenClip.from_pretrained(copy, device="cpu"), "custom_text.")


@torch.no_grad()
def test_dense_readings_are_those_of_clip(open_clip):
    pixels = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    dense = dense_embeddings(open_clip.model, pixels, features="query_key", residual=True, feed_forward=True)
    tower = open_clip.model.vision_model
    tokens = tower(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    expected = open_clip.model.visual_projection(tower.post_layernorm(tokens))
    assert torch.allclose(dense.flatten(1, 2), functional.normalize(expected, dim=-1), atol=1e-5)
    whole = NerveConfig(clip_size=None, clip_window=None)
    assert open_clip.embed_images([Image.new("RGB", (96, 64))], whole)[0].grid == (4, 6)


def test_pixels_are_normalised_as_the_config_says_and_else_as_openai_does(open_clip, folder, tmp_path):
    assert open_clip._mean.flatten().tolist() == pytest.approx([0.5, 0.45, 0.4])
    assert open_clip._std.flatten().tolist() == pytest.approx([0.3, 0.25, 0.2])
    plain = changed(folder, tmp_path / "plain", preprocess_cfg=None)
    assert DenseOpenClip.from_pretrained(plain)._mean[0, 0].item() == pytest.approx(0.48145466)
    wrong = changed(folder, tmp_path / "wrong", preprocess_cfg__std=[0.1, 0.2])
    with pytest.raises(ModelLoadError, match=r"open_clip_config\.json: std: expected 3 finite numbers"):
        DenseOpenClip.from_pretrained(wrong)


def test_the_pipeline_takes_it_where_its_files_say_so(folder, clip_folder, diffusion_folder, wide_image):
    assert text_image_family(clip_folder) == CLIP
    config = NerveConfig(diffusion_size=64, clip_size=32, clip_window=16, clip_stride=8, window=3, templates="name")
    pipeline = NervePipeline.from_pretrained(diffusion=diffusion_folder, clip=folder, device="cpu", config=config)
    assert isinstance(pipeline.text_image, DenseOpenClip)
    result = pipeline(wide_image, "cat, dog, grass")
    assert result.label_map.shape == (wide_image.height, wide_image.width)
    assert torch.isfinite(result.token_probabilities).all()
    assert any(part.files == (CONFIG, WEIGHTS) for part in pipeline.loaded)


@pytest.mark.parametrize(
    ("config", "weights", "family"),
    [
        ("clip", "model.safetensors", CLIP),  # both: transformers' own
        ("clip", "model.safetensors.index.json", CLIP),
        ("clip", "pytorch_model.bin", OPEN_CLIP),
        (None, "model.safetensors", OPEN_CLIP),  # of timm, which names no model_type
    ],
)
def test_what_transformers_can_read_is_left_to_it(folder, tmp_path, config, weights, family):
    shutil.copytree(folder, tmp_path / "both")
    (tmp_path / "both" / weights).touch()
    held = {"architecture": "vit_base_patch16_clip_224"} if config is None else {"model_type": config}
    (tmp_path / "both" / "config.json").write_text(json.dumps(held))
    assert text_image_family(tmp_path / "both") == family


def test_pickles_are_refused_with_the_command_that_converts_them(folder, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    torch.save(load_file(pickled / WEIGHTS), pickled / PICKLE)
    (pickled / WEIGHTS).unlink()
    assert text_image_family(pickled) == OPEN_CLIP
    with pytest.raises(ModelLoadError, match="it has no safetensors weights, and pickles are not read") as refused:
        DenseOpenClip.from_pretrained(pickled, device="cpu")
    found = re.search(r'If you trust them, convert them: python -c "(.*?)" Wanted', str(refused.value))
    assert found is not None
    exec(found[1], {})
    assert_as_the_library(DenseOpenClip.from_pretrained(pickled, device="cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_cfg__vision_cfg__timm_model_name": "vit_pe_core_base_patch16_224"}, "vision_cfg.timm_model_name"),
        ({"model_cfg__vision_cfg__layers": [3, 4, 6, 3]}, r"vision_cfg.layers: expected a number > 0, got '?\[3, 4"),
        ({"model_cfg__vision_cfg__pool_type": "avg"}, "vision_cfg.pool_type: expected tok, got 'avg'"),
        ({"model_cfg__text_cfg__hf_model_name": "roberta-base"}, "text_cfg.hf_model_name: expected none"),
        ({"model_cfg__text_cfg__act_kwargs": {"approximate": "tanh"}}, "text_cfg.act_kwargs"),
        ({"model_cfg__multimodal_cfg": {"width": 8}}, "model_cfg.multimodal_cfg"),
        ({"model_cfg__text_cfg": None}, "text_cfg: expected the sizes of a tower"),
        ({"model_cfg__vision_cfg__width": 10**9}, "model_cfg.vision_cfg.width: expected 1 to 16384"),
        ({"model_cfg__vision_cfg__width": 16000, "model_cfg__vision_cfg__layers": 128}, "describes at least"),
        ({"model_cfg__embed_dim": 14}, "of another shape: text_projection.weight"),
        ({"model_cfg__text_cfg__layers": 1}, "left over: text_model.encoder.layers.1"),
        ({"model_cfg__vision_cfg__layers": 3}, "missing: vision_model.encoder.layers.2"),
    ],
)
def test_other_towers_and_weights_that_do_not_fit_are_refused_by_name(folder, tmp_path, changes, said):
    copy = changed(folder, tmp_path / "other", **changes)
    with pytest.raises(ModelLoadError, match=said) as refused:
        DenseOpenClip.from_pretrained(copy, device="cpu")
    assert "open_clip_config.json" in str(refused.value) or "weights" in str(refused.value)


def test_weights_that_clip_has_not_are_refused(folder, tmp_path):
    extra = copy_with_weights(
        folder, tmp_path / "extra", WEIGHTS, lambda held: {**held, "visual.attn_pool.query": torch.ones(3)}
    )
    with pytest.raises(ModelLoadError, match=r"left over: vision_model\.attn_pool\.query"):
        DenseOpenClip.from_pretrained(extra)
    broken = copy_with_weights(folder, tmp_path / "broken", WEIGHTS, spoilt("logit_scale"))
    with pytest.raises(ModelLoadError, match="the logit_scale of"):
        DenseOpenClip.from_pretrained(broken)


def test_an_incomplete_folder_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "without")
    (tmp_path / "without" / WEIGHTS).unlink()
    with pytest.raises(ModelLoadError, match=WEIGHTS):
        DenseOpenClip.from_pretrained(tmp_path / "without")
    shutil.copytree(folder, tmp_path / "wordless")
    for file in (tmp_path / "wordless").glob("*token*"):
        file.unlink()
    with pytest.raises(ModelLoadError, match=r"clip: expected tokenizer\.json, or vocab\.json and merges\.txt"):
        DenseOpenClip.from_pretrained(tmp_path / "wordless")


def test_half_precision_weights_are_read(folder, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    save_file({name: one.half() for name, one in load_file(half / WEIGHTS).items()}, half / WEIGHTS)
    loaded = DenseOpenClip.from_pretrained(half, device="cpu")
    assert loaded.dtype == torch.float32
    names = loaded.embed_names(reference.TEXTS, ["{}"])
    assert torch.allclose(names, EXPECTED["text"], atol=1e-2)
