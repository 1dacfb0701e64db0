"""Tiny random models of many families, how they run, and what has to be captured of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

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


def heads_of(tokens: Tensor, heads: int = 2) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
