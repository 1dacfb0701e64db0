"""q and k of tiny random models of many families, against what their own weights give when followed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.capturing.families import FAMILIES, SIDE, heads_of, made, noise
from tests.ops.problems import relative_error
from torch import Tensor, nn
from torch.nn import functional

import nerve_kernels as nk


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_is_captured_with_names_and_grids_and_answers_as_before(name):
    family = made(name)
    before = first_tensor(family.run(family.model))
    with nk.capture(family.model, tokens=(1, 25) if "nn." in name else None) as attention:
        answer = first_tensor(family.run(family.model))
    # nn.MultiheadAttention leaves its fast path
    assert torch.equal(answer, before) or ("nn." in name and torch.allclose(answer, before, atol=1e-6))
    assert [(layer.name, layer.grid) for layer in attention.layers] == family.layers
    for layer in attention.layers:
        assert layer.q.shape == layer.k.shape
        assert layer.q.shape[::2] == (2, layer.grid[0] * layer.grid[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in family.model.modules())
    S = attention.affinity(criterion="cell_information", window=3, cells=2, beta=0.5)
    ones = torch.ones(S.shape[1], 1)
    assert torch.allclose(S @ ones.expand(2, -1, -1), ones, atol=1e-5)


def first_tensor(output: Any) -> Tensor:
    values = [output] if isinstance(output, Tensor) else output.values() if isinstance(output, dict) else output
    return next(value for value in values if isinstance(value, Tensor))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotated_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on neighbours."""
    even, odd = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


@torch.no_grad()
def test_q_and_k_are_those_of_the_weights_with_norms_and_rotary_positions():
    errors = {}
    for name, layer_name in (("DINOv2", "encoder.layer.0"), ("DINOv3", "model.layer.0"), ("ViT", "layers.0")):
        family = made(name)
        block = family.model.get_submodule(layer_name)
        inputs: list[Any] = []
        handle = block.attention.register_forward_pre_hook(
            lambda module, args, kwargs, inputs=inputs: inputs.append(((*args, *kwargs.values())[0], kwargs)),
            with_kwargs=True,
        )
        with nk.capture(family.model, f"{layer_name}.attention") as attention:
            family.run(family.model)
        handle.remove()
        (layer,), (hidden, kwargs) = attention.layers, inputs[0]
        own = {key: module for key, module in block.attention.named_modules() if isinstance(module, nn.Linear)}
        query = next(module for key, module in own.items() if "q" in key.rpartition(".")[2][:1])
        key = next(module for key, module in own.items() if key.rpartition(".")[2][:1] == "k")
        q, k = (heads_of(module(hidden))[:, :, -24:] for module in (query, key))
        if name == "DINOv3":
            cos, sin = kwargs["position_embeddings"]
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        errors[name] = max(relative_error(layer.q, q), relative_error(layer.k, k))
    for name, layer_name in (
        ("Stable Diffusion", "mid_block.attentions.0.transformer_blocks.0.attn1"),
        ("PixArt", "transformer_blocks.0.attn1"),
        ("FLUX.1", "transformer_blocks.0.attn"),
        ("FLUX.1", "single_transformer_blocks.0.attn"),
    ):
        family = made(name)
        attn: Any = family.model.get_submodule(layer_name)
        inputs = []
        handle = attn.register_forward_pre_hook(
            lambda module, args, kwargs, inputs=inputs: inputs.append(((*args, *kwargs.values())[0], kwargs)),
            with_kwargs=True,
        )
        with nk.capture(family.model, layer_name) as attention:
            family.run(family.model)
        handle.remove()
        (layer,), (hidden, kwargs) = attention.layers, inputs[0]
        q, k = heads_of(attn.to_q(hidden)), heads_of(attn.to_k(hidden))
        if name == "FLUX.1":
            q, k = (
                rotated_pairs(norm(x)[:, :, -24:], *(part[-24:] for part in kwargs["image_rotary_emb"]))
                for norm, x in ((attn.norm_q, q), (attn.norm_k, k))
            )
        errors[layer_name] = max(relative_error(layer.q, q), relative_error(layer.k, k))
    family = made("Stable Diffusion 3.5")
    hidden_states: list[Tensor] = []
    attn = family.model.get_submodule("transformer_blocks.1.attn")
    handle = attn.register_forward_pre_hook(
        lambda module, args, kwargs: hidden_states.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with nk.capture(family.model, "transformer_blocks.1.attn") as attention:
        family.run(family.model)
    handle.remove()
    (layer,) = attention.layers
    for found, project, norm in ((layer.q, attn.to_q, attn.norm_q), (layer.k, attn.to_k, attn.norm_k)):
        errors["SD 3.5"] = max(
            errors.get("SD 3.5", 0), relative_error(found, norm(heads_of(project(hidden_states[0]))))
        )
    family = made("nn.MultiheadAttention")
    with nk.capture(family.model, tokens=(1, 25)) as attention:
        family.run(family.model)
    (layer,) = attention.layers
    x = family.model.patches(noise(2, 3, *SIDE)).flatten(2).transpose(1, 2)
    weights, biases = family.model.attn.in_proj_weight.split(16), family.model.attn.in_proj_bias.split(16)
    for found, weight, bias in zip((layer.q, layer.k), weights, biases, strict=False):
        errors["MHA"] = max(errors.get("MHA", 0), relative_error(found, heads_of(functional.linear(x, weight, bias))))
    assert max(errors.values()) < 1e-6, errors
