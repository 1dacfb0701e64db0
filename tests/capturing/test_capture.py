"""q and k of tiny random models of many families, against what their own weights give when followed by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tests.ops.problems import relative_error
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import nerve_kernels as nk
from nerve_kernels import reference

SIDE, PATCH = (32, 48), 8
GRID = (4, 6)
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": PATCH,
}


@dataclass
class Family:
    """A tiny model, how it is run, and what has to be captured of it."""

    model: nn.Module
    run: Callable[[nn.Module], Any]
    layers: list[tuple[str, tuple[int, int]]]
    heads: int = 2


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def vision(model_class: Any, config_class: Any, name: str, **changes: Any) -> Family:
    """A vision transformer on a picture that is not square."""
    model = model_class(config_class(**{**VISION, **changes}))
    run = changes.pop("run", None) or (lambda model: model(pixel_values=noise(2, 3, *SIDE), **interpolated(model)))
    return Family(model, run, [(name.format(index), GRID) for index in range(2)])


def interpolated(model: nn.Module) -> dict[str, bool]:
    """Most have positions of square pictures, which are to be brought to others; DINO does that by itself."""
    return {} if "DINO" in type(model).__name__.upper() else {"interpolate_pos_encoding": True}


def unet(**changes: Any) -> Family:
    model = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
            **changes,
        }
    )
    extra = {}
    if "addition_embed_type" in changes:
        extra = {"added_cond_kwargs": {"text_embeds": noise(2, 8), "time_ids": torch.ones(2, 6)}}
    names = [f"{part}.transformer_blocks.0.attn1" for part in ("down_blocks.1.attentions.0", "mid_block.attentions.0")]
    names += [f"up_blocks.0.attentions.{index}.transformer_blocks.0.attn1" for index in range(2)]
    return Family(
        model, lambda model: model(noise(2, 4, 8, 12), 1, noise(2, 7, 8), **extra), [(n, (4, 6)) for n in names]
    )


def sd3() -> Family:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip

    def run(model: nn.Module) -> Any:
        step = torch.tensor([1, 1])
        return model(noise(2, 4, 8, 12), noise(2, 5, 16), noise(2, 8), step)

    names = ["transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn"]
    return Family(model, run, [(name, GRID) for name in names])


def flux() -> Family:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    ids = torch.zeros(24, 3)
    ids[:, 1], ids[:, 2] = torch.arange(4).repeat_interleave(6), torch.arange(6).repeat(4)

    def run(model: nn.Module) -> Any:
        return model(
            hidden_states=noise(2, 24, 4), encoder_hidden_states=noise(2, 5, 16), pooled_projections=noise(2, 8),
            timestep=torch.tensor([1.0, 1.0]), img_ids=ids, txt_ids=torch.zeros(5, 3),
        )  # fmt: skip

    return Family(model, run, [("transformer_blocks.0.attn", GRID), ("single_transformer_blocks.0.attn", GRID)])


def flux_2() -> Family:
    model = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    places, words = (torch.cartesian_prod(*map(torch.arange, sides)) for sides in ((1, 4, 6, 1), (1, 1, 1, 5)))

    def run(model: nn.Module) -> Any:
        return model(
            hidden_states=noise(2, 24, 4), encoder_hidden_states=noise(2, 5, 16), timestep=torch.tensor([1.0, 1.0]),
            guidance=torch.tensor([4.0, 4.0]), img_ids=places, txt_ids=words,
        )  # fmt: skip

    return Family(model, run, [("transformer_blocks.0.attn", GRID), ("single_transformer_blocks.0.attn", GRID)])


def pixart() -> Family:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=12,
    )  # fmt: skip

    def run(model: nn.Module) -> Any:
        sizes = {"resolution": None, "aspect_ratio": None}
        return model(noise(2, 4, 8, 12), noise(2, 5, 12), torch.tensor([1, 1]), added_cond_kwargs=sizes)

    return Family(model, run, [("transformer_blocks.0.attn1", GRID)])


def clip() -> Family:
    """Both towers: that of words is passed over."""
    text = {key: value for key, value in VISION.items() if key not in ("image_size", "patch_size")} | {"vocab_size": 20}
    text |= {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))

    def run(model: nn.Module) -> Any:
        words = torch.tensor([[1, 5, 2]])
        return model(input_ids=words, pixel_values=noise(2, 3, *SIDE), interpolate_pos_encoding=True)

    return Family(model, run, [(f"vision_model.encoder.layers.{index}.self_attn", GRID) for index in range(2)])


def open_clip_like() -> Family:
    """nn.MultiheadAttention, tokens before batch, a class token before the picture's."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, PATCH, PATCH)
            self.attn = nn.MultiheadAttention(16, 2)

        def forward(self, image: Tensor) -> Tensor:
            x = self.patches(image).flatten(2).permute(2, 0, 1)
            x = torch.cat([x.mean(0, keepdim=True), x])
            result: Tensor = self.attn(x, x, x, need_weights=False)[0]
            return result

    return Family(Tower(), lambda model: model(noise(2, 3, *SIDE)), [("attn", GRID)])


T = transformers
FAMILIES: dict[str, Callable[[], Family]] = {
    "Stable Diffusion": unet,
    "SDXL": lambda: unet(
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=20
    ),
    "Stable Diffusion 3.5": sd3,
    "FLUX.1": flux,
    "FLUX.2": flux_2,
    "PixArt": pixart,
    "CLIP": clip,
    "SigLIP": lambda: vision(T.SiglipVisionModel, T.SiglipVisionConfig, "encoder.layers.{}.self_attn"),
    "DINOv2": lambda: vision(T.Dinov2Model, T.Dinov2Config, "encoder.layer.{}.attention"),
    "DINOv2 with registers": lambda: vision(
        T.Dinov2WithRegistersModel, T.Dinov2WithRegistersConfig, "encoder.layer.{}.attention", num_register_tokens=4
    ),
    "DINOv3": lambda: vision(T.DINOv3ViTModel, T.DINOv3ViTConfig, "model.layer.{}.attention", num_register_tokens=4),
    "ViT": lambda: vision(T.ViTModel, T.ViTConfig, "layers.{}.attention"),
    "DeiT": lambda: vision(T.DeiTModel, T.DeiTConfig, "layers.{}.attention"),
    "nn.MultiheadAttention": open_clip_like,
}


def made(name: str) -> Family:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family = FAMILIES[name]()
    family.model.eval()
    return family


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


def heads_of(tokens: Tensor, heads: int = 2) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


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


class Attention(nn.Module):
    """One layer on tokens (B, N, 16)."""

    def __init__(self, mode: str = "sdpa", heads: int = 2, key_heads: int = 2) -> None:
        super().__init__()
        self.mode, self.heads, self.key_heads = mode, heads, key_heads

    def forward(self, x: Tensor) -> Tensor:
        q, k = heads_of(x, self.heads), heads_of(x[..., : 16 // self.heads * self.key_heads], self.key_heads)
        if self.mode == "eager":
            return (q @ k.transpose(-1, -2)).softmax(-1) @ k
        options: dict[str, Any] = {
            "bias": {"attn_mask": torch.ones(x.shape[1], x.shape[1])},
            "scaled": {"scale": 0.1},
            "grouped": {"enable_gqa": True},
        }.get(self.mode, {})
        if self.mode == "windows":
            q, k = (
                q.unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1),
                k.unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1),
            )
        self.finished = False
        result: Tensor = functional.scaled_dot_product_attention(q, k, k, **options)
        self.finished = True
        return result


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            layer(x)
        return x


X = noise(1, 24, 16)


def test_a_scale_of_its_own_goes_into_the_affinity():
    model = Model(Attention("scaled"))
    with nk.capture(model, grid=GRID) as attention:
        model(X)
    (layer,) = attention.layers
    assert layer.scale == 0.1
    stats = attention.statistics(window=3, cells=2)
    q = heads_of(X)
    assert relative_error(stats.entropy[0], reference.attention_entropy(q, q, scale=0.1)) < 1e-5


def test_heads_that_share_keys_have_copies_of_them():
    model = Model(Attention("grouped", heads=4, key_heads=2))
    with nk.capture(model, grid=GRID) as attention:
        model(X)
    (layer,) = attention.layers
    assert layer.q.shape == layer.k.shape == (1, 4, 24, 4)
    assert torch.equal(layer.k[:, 0], layer.k[:, 1])


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (Attention("eager"), RuntimeError, r"layers.0 \(Attention\) ran without scaled_dot_product_attention"),
        (Attention("bias"), ValueError, "layers.0: expected scores of q and k alone, got a mask or bias added to them"),
        (Attention("windows"), ValueError, "layers.0: expected attention over the whole picture, got windows of it"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(layer, error, message):
    model = Model(layer)
    with pytest.raises(error, match=message), nk.capture(model, grid=GRID):
        model(X)
    assert not model._forward_hooks
    assert not layer._forward_pre_hooks


def test_another_thread_is_noticed():
    model = Model(Attention())
    thread = threading.Thread(target=model, args=(X,))

    def run() -> None:
        with nk.capture(model, grid=GRID):
            thread.start()
            thread.join()

    with pytest.raises(RuntimeError, match="ran without scaled_dot_product_attention"):
        run()


def test_chosen_layers_alone_and_an_early_end():
    model, ran = Model(Attention(), Attention("eager"), Attention()), []
    model.layers[2].register_forward_hook(lambda *others: ran.append(1))
    with nk.capture(model, "layers.0", grid=GRID, stop_early=True) as attention:
        model(X)
        ran.append(2)
    assert [layer.name for layer in attention.layers] == ["layers.0"]
    assert ran == []
    model.layers[1].mode = model.layers[2].mode = "sdpa"
    with nk.capture(model, ["layers.0", "layers.2"], grid=GRID, stop_early=True) as attention:
        model(X)
    assert [layer.finished for layer in model.layers] == [True, True, False]  # the last product is not waited for
    assert [layer.name for layer in attention.layers] == ["layers.0", "layers.2"]
    with nk.capture(model, ["layers.0", "layers.2"], grid=GRID) as attention:
        model(X)
        model(X)
    assert [layer.name for layer in attention.layers] == ["layers.0", "layers.2"] * 2


def test_misuse_is_refused_in_a_sentence():
    model = Model(Attention())
    for arguments, message in [
        (
            {"layers": "blocks.*"},
            r"layers: expected names of this model's modules, got 'blocks\.\*'; there is: layers.0",
        ),
        ({"layers": 3}, "layers: expected names or globs of modules, got int"),
        ({"grid": (0, 3)}, "grid: expected H ≥ 1 and W ≥ 1"),
        ({"grid": (5, 5)}, "layers.0: expected tokens that are the picture's grid, got 24"),
        ({"grid": GRID, "tokens": (1, 24)}, "tokens: expected the picture's tokens among the 24 of layers.0"),
        ({}, "layers.0: expected tokens that are the picture's grid, got 24 for a picture of unknown size in a Model"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message), nk.capture(model, **arguments):
            model(X)
    with (
        pytest.raises(RuntimeError, match="model: expected a pass within the block, got none"),
        nk.capture(model),
    ):
        pass
    with (
        pytest.raises(TypeError, match=r"model: expected a model of its own, got DataParallel; give model\.module"),
        nk.capture(nn.DataParallel(model)),
    ):
        pass
    with pytest.raises(RuntimeError, match="layers: expected at least one captured layer, got none"):
        nk.CapturedAttention().affinity()


def test_modes_transforms_and_compilation_go_through():
    model = Model(Attention())
    expected = heads_of(X)
    x = X.clone().requires_grad_()
    both = torch.stack([X, 2 * X])
    runs: dict[str, Callable[[], Any]] = {
        "a graph": lambda: model(x),
        "checkpoint": lambda: checkpoint(model, x, use_reentrant=False),
        "grad": lambda: torch.func.grad(lambda y: model(y).sum())(X),
        "vmap": lambda: torch.vmap(model)(both),
    }
    for name, run in runs.items():
        with nk.capture(model, grid=GRID) as attention:
            run()
        q = attention.layers[0].q
        assert torch.equal(q, torch.cat([expected, 2 * expected]) if name == "vmap" else expected), name
        assert q.requires_grad == (name in ("a graph", "checkpoint")), name
    with torch.inference_mode(), nk.capture(model, grid=GRID) as attention:
        model(X)
    assert torch.equal(attention.layers[0].q, expected)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager")
    for _ in range(2):
        with nk.capture(compiled, "layers.0", grid=GRID) as attention:
            compiled(X)
        assert [layer.name for layer in attention.layers] == ["layers.0"]
        assert torch.equal(attention.layers[0].q, expected)


def test_tokens_before_the_batch_are_no_windows():
    encoder = nn.TransformerEncoderLayer(16, 2).eval()
    with torch.no_grad(), nk.capture(encoder, grid=GRID) as attention:
        encoder(noise(24, 3, 16))
    assert attention.layers[0].q.shape == (3, 2, 24, 8)
