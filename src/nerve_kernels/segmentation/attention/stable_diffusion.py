"""A Stable Diffusion checkpoint's parts: what features are made with, and text encoders only while they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.loading import (
    ModelLoadError,
    check_vocabulary,
    choose_device,
    choose_dtype,
    freeze,
    load_part,
)


def load_stable_diffusion(
    source: str | os.PathLike[str], device: str | torch.device | None, dtype: str | torch.dtype | None
) -> dict[str, Any]:
    """Load UNet, VAE, noise schedule and text encoders, of which the answer to the empty prompt is kept.

    Stable Diffusion XL has two text encoders: its UNet is told what both say, one beside the other, as they have it
    before their last layer, and what the second makes of all of it.

    Args:
        source: A folder in the hub's Stable Diffusion format, or a model id of the hub.
        device: None: a GPU if there is one.
        dtype: None: float16 on a GPU, else float32.

    Returns:
        The arguments of :class:`~.diffusion.DiffusionFeatures`, by name.

    Raises:
        MissingExtraError: Diffusers or transformers is not installed.
        ModelLoadError: Incomplete folder, unknown id, or no connection.
    """
    require_extra("diffusers", "transformers")
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def part(load: Callable[..., Any], subfolder: str, **options: Any) -> Any:
        return load_part(load, source, argument="diffusion", subfolder=subfolder, **options)

    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    # Stable Diffusion 1.x's VAE overflows float16, and it runs only once an image.
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    file = {"config": "config.json", "weights": "diffusion_pytorch_model.safetensors"}
    unet = part(UNet2DConditionModel.from_pretrained, "unet", torch_dtype=dtype, **file)
    vae = part(AutoencoderKL.from_pretrained, "vae", torch_dtype=vae_dtype, **file)
    # Whatever sampler the checkpoint names, its noise schedule is all that is needed here,
    # and DDPMScheduler adds noise in the scale in which the UNet was trained.
    scheduler = part(DDPMScheduler.from_pretrained, "scheduler", config="scheduler_config.json")
    alphas = scheduler.alphas_cumprod
    if len(alphas) != scheduler.config.num_train_timesteps or not ((alphas >= 0) & (alphas <= 1)).all():
        raise ModelLoadError(
            f"diffusion: the noise schedule of {source} has {len(alphas)} levels from {float(alphas.min())} to "
            f"{float(alphas.max())}; expected {scheduler.config.num_train_timesteps} from 0 to 1"
        )
    freeze(unet, device, dtype)
    freeze(vae, device, vae_dtype)

    def answer(encoder_class: Any, number: str) -> Any:
        """What a text encoder says to the empty prompt; it is let go again."""
        encoder = part(
            encoder_class.from_pretrained, f"text_encoder{number}", config="config.json", weights="model.safetensors"
        )
        tokenizer = part(CLIPTokenizer.from_pretrained, f"tokenizer{number}", config="tokenizer_config.json")
        check_vocabulary(tokenizer, encoder.config, argument="diffusion")
        freeze(encoder, device, dtype)
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
        with torch.no_grad():
            return encoder(tokens.input_ids.to(device), output_hidden_states=True)

    pooled_prompt = None
    if unet.config.addition_embed_type == "text_time":
        first, second = answer(CLIPTextModel, ""), answer(CLIPTextModelWithProjection, "_2")
        empty_prompt = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled_prompt = second.text_embeds
    else:
        empty_prompt = answer(CLIPTextModel, "").last_hidden_state
    for said in (empty_prompt, pooled_prompt):
        if said is not None and not said.isfinite().all():
            raise ModelLoadError(
                f"diffusion: the text encoder of {source} answers NaN or infinity to the empty prompt; its weights "
                "are damaged, or overflow their dtype: try float32"
            )
    return {
        "unet": unet,
        "vae": vae,
        "scheduler": scheduler,
        "empty_prompt": empty_prompt,
        "pooled_prompt": pooled_prompt,
    }
