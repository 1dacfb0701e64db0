"""Stable Diffusion and CLIP with random weights and a few thousand parameters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CLIP_WEIGHTS = "model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"

MERGED_WORDS = ("photo", "cat", "dog", "grass", "sky")


def make_tokenizer(longest: int = 16):
    """A byte-level BPE that knows a few words and spells the others."""
    from transformers import CLIPTokenizer

    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,-'|")
    vocabulary = {piece: index for index, piece in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    merges: list[tuple[str, str]] = []
    for word in MERGED_WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            joined = pieces[0] + pieces[1]
            if joined not in vocabulary:
                merges.append((pieces[0], pieces[1]))
                vocabulary[joined] = len(vocabulary)
            pieces[:2] = [joined]
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=longest)


def text_settings(tokenizer, longest: int = 16) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": longest,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def make_stable_diffusion(folder: Path) -> None:
    """Attention at the latent's resolution and at half of it; a VAE that shrinks by 4."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=12,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    parts = {
        "unet": unet,
        "vae": vae,
        "scheduler": PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer))),
        "tokenizer": tokenizer,
    }
    # Saved one by one: importing StableDiffusionPipeline itself takes several seconds.
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = type(part).__module__.partition(".")[0]
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def make_clip(folder: Path) -> None:
    """Patch 8, made for 32 x 32 pixels."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    config = CLIPConfig(
        text_config=text_settings(tokenizer),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


def copy_with_weights(
    checkpoint: Path, target: Path, file: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    """A copy of a checkpoint in which one file of weights holds what `change` makes of it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, target)
    save_file(change(load_file(target / file)), target / file, {"format": "pt"})
    return target


def copy_with_config(checkpoint: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint in which one JSON file has other fields; ``a__b`` is the field b of the object a."""
    shutil.copytree(checkpoint, target)
    config = json.loads((target / file).read_text())
    for name, value in changes.items():
        *path, field = name.split("__")
        inner = config
        for step in path:
            inner = inner[step]
        inner[field] = value
    (target / file).write_text(json.dumps(config))
    return target


def spoilt(name: str, value: float = torch.nan) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A change for :func:`copy_with_weights`: the first number of one tensor is another."""

    def change(weights):
        changed = weights[name].clone()
        changed.view(-1)[0] = value
        return {**weights, name: changed}

    return change


def make_vision_transformer(folder: Path, family: str = "dinov2") -> None:
    """Three blocks of two heads on patches of 8, made for 32 x 32 pixels."""
    from transformers import AutoConfig, AutoModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(2)
    config = AutoConfig.for_model(
        family,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        **({} if family in ("vit", "deit", "dinov2") else {"num_register_tokens": 2}),
    )
    AutoModel.from_config(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


def make_stable_diffusion_xl(folder: Path) -> None:
    """Attention at half the latent's resolution only; two text encoders, the second with a projection."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    make_stable_diffusion(folder)
    torch.manual_seed(3)
    tokenizer = make_tokenizer()
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(
        sample_size=12,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    ).save_pretrained(folder / "unet")
    CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(tokenizer), projection_dim=24)).save_pretrained(
        folder / "text_encoder_2"
    )
    tokenizer.save_pretrained(folder / "tokenizer_2")


def make_siglip(folder: Path) -> None:
    """Patch 8, made for 32 x 32 pixels, texts of 16 tokens."""
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(4)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    text = text_settings(tokenizer) | {"projection_size": 32}
    vision = {key: text[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    vision |= {"image_size": 32, "patch_size": 8, "num_hidden_layers": 3}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


def make_t5(folder: Path, width: int = 24) -> None:
    """Two blocks."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2, "vocab_size": 20}
    T5EncoderModel(T5Config(**sizes, eos_token_id=1, pad_token_id=0)).save_pretrained(folder)


def make_latent_vae(folder: Path, kind: str = "AutoencoderKL", channels: int = 4) -> None:
    """Shrinks by 4, with the scale and shift of a checkpoint for flow matching."""
    import diffusers

    sizes: dict[str, Any] = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    if kind == "AutoencoderKL":
        sizes |= {"scaling_factor": 1.5, "shift_factor": 0.25}
    vae = getattr(diffusers, kind)(**sizes)
    if kind == "AutoencoderKLFlux2":
        vae.bn.running_mean.uniform_(-1, 1)
        vae.bn.running_var.uniform_(0.5, 2)
    vae.save_pretrained(folder)


DIFFUSION_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "SD3Transformer2DModel": {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 80, "caption_projection_dim": 16,
        "pooled_projection_dim": 40, "pos_embed_max_size": 16, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
    },
    "FluxTransformer2DModel": {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8),
    },
    "Flux2Transformer2DModel": {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "sample_size": 8, "patch_size": 2, "cross_attention_dim": 16, "caption_channels": 24,
    },
}  # fmt: skip


def make_diffusion_transformer(folder: Path, kind: str = "SD3Transformer2DModel", **changes: Any) -> None:
    """Two layers of two heads; text encoders as the family has them, FLUX.2 with a saved answer in their place."""
    import diffusers
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(5)
    folder.mkdir(exist_ok=True)
    tokenizer = make_tokenizer()
    sizes = {**DIFFUSION_TRANSFORMERS[kind], **changes}
    getattr(diffusers, kind)(**sizes).save_pretrained(folder / "transformer")
    make_latent_vae(folder / "vae", "AutoencoderKLFlux2" if "Flux2" in kind else "AutoencoderKL")
    if "PixArt" in kind:
        diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02).save_pretrained(folder / "scheduler")
    else:
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    if "SD3" in kind:
        for number, width in (("", 24), ("_2", 16)):
            config = CLIPTextConfig(**text_settings(tokenizer), projection_dim=width)
            CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{number}")
            tokenizer.save_pretrained(folder / f"tokenizer{number}")
        make_t5(folder / "text_encoder_3", 80)
    elif "Flux2" in kind:
        save_file({"prompt_embeds": torch.randn(1, 6, 24)}, folder / "empty_prompt.safetensors")
    elif "Flux" in kind:
        CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer))).save_pretrained(folder / "text_encoder")
        tokenizer.save_pretrained(folder / "tokenizer")
        make_t5(folder / "text_encoder_2")
    else:
        make_t5(folder / "text_encoder")
    (folder / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", kind]}))
