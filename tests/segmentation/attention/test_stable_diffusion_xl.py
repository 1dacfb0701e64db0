"""Stable Diffusion XL: two text encoders, and what its UNet is told of the image."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.segmentation.tiny_checkpoints import make_stable_diffusion_xl

from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.loading import ModelLoadError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("xl")
    make_stable_diffusion_xl(made)
    return made


def test_it_segments_with_its_layers_at_half_the_latent(folder, clip_folder, wide_image):
    config = NerveConfig(
        diffusion_size=64, layers=("latent/2",), clip_size=32, clip_window=None, window=3, cells=2, templates="name"
    )
    pipeline = NervePipeline.from_pretrained(diffusion=folder, clip=clip_folder, device="cpu", config=config)
    features = pipeline.encode(wide_image)
    assert features.grid[0] == 64 // 4 // 2
    assert {layer.q.shape[1] for layer in features.builder.layers} == {4}
    assert pipeline.segment(features, "cat, dog").label_map.shape == (wide_image.height, wide_image.width)


def test_the_prompt_is_what_both_encoders_say_before_their_last_layer(folder):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    source = DiffusionFeatures.from_pretrained(folder, device="cpu")
    parts = []
    for encoder_class, number in ((CLIPTextModel, ""), (CLIPTextModelWithProjection, "_2")):
        encoder = encoder_class.from_pretrained(folder / f"text_encoder{number}").eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
        ids = tokenizer("", padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            parts.append(encoder(ids, output_hidden_states=True))
    expected = torch.cat([part.hidden_states[-2] for part in parts], dim=-1)
    assert torch.allclose(source.empty_prompt, expected, atol=1e-6)
    assert torch.allclose(source.pooled_prompt, parts[1].text_embeds, atol=1e-6)


def test_the_unet_is_told_the_size_of_an_image_that_is_not_cropped(folder, monkeypatch):
    source = DiffusionFeatures.from_pretrained(folder, device="cpu")
    told = []
    original = source.unet.forward

    def forward(*args, added_cond_kwargs, **kwargs):
        told.append(added_cond_kwargs["time_ids"].tolist())
        return original(*args, added_cond_kwargs=added_cond_kwargs, **kwargs)

    monkeypatch.setattr(source.unet, "forward", forward)
    source.denoise(torch.zeros(1, 4, 8, 12), 0)
    assert told == [[[32.0, 48.0, 0.0, 0.0, 32.0, 48.0]]]


def test_without_its_second_encoder_it_is_refused_by_name(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(broken / "text_encoder_2")
    with pytest.raises(ModelLoadError, match=r"diffusion: the folder .*text_encoder_2 does not exist"):
        DiffusionFeatures.from_pretrained(broken, device="cpu")
