"""Models of which some or all layers attend within windows of the picture: SAM 3's encoder, and Swin."""

from __future__ import annotations

import pytest
import torch
import transformers
from tests.capturing.families import heads_of, noise

import nerve_kernels as nk


@pytest.fixture(scope="module")
def sam_3():
    """Windows of 4 x 4 tokens in the first and the third of four layers."""
    config = transformers.Sam3ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=8,
        pretrain_image_size=32, window_size=4, global_attn_indexes=[1, 3],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.Sam3ViTModel(config).eval()


@torch.no_grad()
def test_global_layers_of_sam_3_are_captured_with_their_rotary_positions(sam_3):
    pixels, inputs = noise(2, 3, 64, 64), []
    attn = sam_3.layers[1].attention
    handle = attn.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((*args, *kwargs.values())), with_kwargs=True
    )
    before = sam_3(pixel_values=pixels).last_hidden_state
    with nk.capture(sam_3, ["layers.1", "layers.3"]) as attention:
        answer = sam_3(pixel_values=pixels).last_hidden_state
    handle.remove()
    assert torch.equal(answer, before)
    assert [(layer.name, layer.grid) for layer in attention.layers] == [
        ("layers.1.attention", (8, 8)),
        ("layers.3.attention", (8, 8)),
    ]
    hidden, (cos, sin) = inputs[0]
    for found, project in ((attention.layers[0].q, attn.q_proj), (attention.layers[0].k, attn.k_proj)):
        plain = heads_of(project(hidden.flatten(1, 2)))
        turned = torch.stack([-plain[..., 1::2], plain[..., ::2]], dim=-1).flatten(-2)
        assert torch.allclose(found, plain * cos + turned * sin, atol=1e-6)


@torch.no_grad()
def test_the_default_of_sam_3_is_its_global_layers(sam_3):
    with nk.capture(sam_3) as attention:
        sam_3(pixel_values=noise(1, 3, 64, 64))
    assert [layer.name for layer in attention.layers] == ["layers.1.attention", "layers.3.attention"]


@pytest.mark.parametrize("layers", ["layers.0", "layers.*"])
@torch.no_grad()
def test_windowed_layers_of_sam_3_are_refused_by_name(sam_3, layers):
    said = r"layers\.0\.attention: expected attention over the whole picture, got windows of it"
    with pytest.raises(ValueError, match=said), nk.capture(sam_3, layers):
        sam_3(pixel_values=noise(1, 3, 64, 64))


@torch.no_grad()
def test_swin_is_refused_by_name():
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    model = transformers.SwinModel(config).eval()
    said = r"encoder\.layers\.0\.\S+: expected attention over the whole picture, got windows of it \(SwinAttention\)"
    with pytest.raises(ValueError, match=said), nk.capture(model):
        model(noise(1, 3, 32, 32))
