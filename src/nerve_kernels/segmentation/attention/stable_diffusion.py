"""A Stable Diffusion checkpoint's parts: what features are made with, and the text encoder only while it is needed."""

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
    """Load UNet, VAE, noise schedule and text encoder, of which the answer to the empty prompt is kept.

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
    from transformers import CLIPTextModel, CLIPTokenizer

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
    text_encoder = part(
        CLIPTextModel.from_pretrained, "text_encoder", config="config.json", weights="model.safetensors"
    )
    tokenizer = part(CLIPTokenizer.from_pretrained, "tokenizer", config="tokenizer_config.json")
    check_vocabulary(tokenizer, text_encoder.config, argument="diffusion")
    alphas = scheduler.alphas_cumprod
    if len(alphas) != scheduler.config.num_train_timesteps or not ((alphas >= 0) & (alphas <= 1)).all():
        raise ModelLoadError(
            f"diffusion: the noise schedule of {source} has {len(alphas)} levels from {float(alphas.min())} to "
            f"{float(alphas.max())}; expected {scheduler.config.num_train_timesteps} from 0 to 1"
        )
    freeze(unet, device, dtype)
    freeze(vae, device, vae_dtype)
    freeze(text_encoder, device, dtype)
    length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        empty_prompt = text_encoder(tokens.input_ids.to(device))[0]
    if not empty_prompt.isfinite().all():
        raise ModelLoadError(
            f"diffusion: the text encoder of {source} answers NaN or infinity to the empty prompt; its weights are "
            "damaged, or overflow their dtype: try float32"
        )
    return {"unet": unet, "vae": vae, "scheduler": scheduler, "empty_prompt": empty_prompt}
