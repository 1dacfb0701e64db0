"""A Stable Diffusion checkpoint's parts: what features are made with, and text encoders only while they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.loading import ModelLoadError, choose_device, choose_dtype, freeze, load_part

from .text_encoders import TextEncoders, require_finite_prompt

AUTOENCODERS = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderTiny")
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def load_stable_diffusion(
    source: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    autoencoder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Load UNet, VAE, noise schedule and text encoders, of which the answer to the empty prompt is kept.

    Stable Diffusion XL has two text encoders: its UNet is told what both say, one beside the other, as they have it
    before their last layer, and what the second makes of all of it.

    Args:
        source: A folder in the hub's Stable Diffusion format, or a model id of the hub.
        device: None: a GPU if there is one.
        dtype: None: float16 on a GPU, else float32.
        autoencoder: None: the checkpoint's own VAE.

    Returns:
        The arguments of :class:`~.diffusion.DiffusionFeatures`, by name.

    Raises:
        MissingExtraError: Diffusers or transformers is not installed.
        ModelLoadError: Incomplete folder, unknown id, or no connection.
    """
    require_extra("diffusers", "transformers")
    from diffusers import UNet2DConditionModel

    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    unet = load_model(UNet2DConditionModel.from_pretrained, source, device, dtype, subfolder="unet")
    vae = load_vae(source, device, dtype, autoencoder)
    scheduler = load_diffusion_noise(source)
    encoders = TextEncoders(source, device, dtype)
    pooled_prompt = None
    if unet.config.addition_embed_type == "text_time":
        first, second = encoders.clip(), encoders.clip("_2", projected=True)
        empty_prompt = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled_prompt = second.text_embeds
    else:
        empty_prompt = encoders.clip().last_hidden_state
    require_finite_prompt(source, empty_prompt, pooled_prompt)
    return {
        "unet": unet,
        "vae": vae,
        "scheduler": scheduler,
        "empty_prompt": empty_prompt,
        "pooled_prompt": pooled_prompt,
    }


def load_vae(
    source: str | os.PathLike[str],
    device: torch.device,
    dtype: torch.dtype,
    autoencoder: str | os.PathLike[str] | None,
) -> Any:
    """The autoencoder of a checkpoint, or another in its place; only its encoder is ever run.

    Args:
        source: as above.
        device: where it runs.
        dtype: what the model beside it runs in; in place of float16, which Stable Diffusion 1.x's VAE overflows, it
            gets float32, for it runs only once an image.
        autoencoder: None, or a folder or model id of another one with the same latent, such as an ``AutoencoderTiny``.
    """
    import diffusers

    dtype = torch.float32 if dtype == torch.float16 else dtype
    place: dict[str, Any] = {"argument": "diffusion", "subfolder": "vae"}
    if autoencoder is not None:
        source, place = autoencoder, {"argument": "autoencoder"}
    config = load_part(diffusers.AutoencoderKL.load_config, source, config=_CONFIG, **place)
    name = config.get("_class_name", "AutoencoderKL")
    if name not in AUTOENCODERS:
        wanted = f"_class_name one of {', '.join(AUTOENCODERS)}"
        raise ModelLoadError(f"{place['argument']}: {refusal(f'config.json of {source}', wanted, name)}")
    load: Callable[..., Any] = getattr(diffusers, name).from_pretrained
    vae = load_model(load, source, device, dtype, **place)
    # Nearly all of it is convolutions of many pixels and few channels: a quarter less time on CPUs.
    return vae.to(memory_format=torch.channels_last)


def load_model(
    load: Callable[..., Any],
    source: str | os.PathLike[str],
    device: torch.device,
    dtype: torch.dtype,
    *,
    argument: str = "diffusion",
    subfolder: str | None = None,
) -> Any:
    """A model of diffusers, frozen on its device; see :func:`~nerve_kernels.segmentation.loading.load_part`."""
    model = load_part(
        load, source, argument=argument, subfolder=subfolder, torch_dtype=dtype, config=_CONFIG, weights=_WEIGHTS
    )
    freeze(model, device, dtype)
    return model


def load_diffusion_noise(source: str | os.PathLike[str]) -> Any:
    """The ``DDPMScheduler`` of a checkpoint.

    Whatever sampler the checkpoint names, its noise schedule is all that is needed here, and ``DDPMScheduler`` adds
    noise in the scale in which the model was trained.

    Raises:
        ModelLoadError: its levels are not as many as it says, or not between 0 and 1.
    """
    from diffusers import DDPMScheduler

    scheduler = load_part(
        DDPMScheduler.from_pretrained,
        source,
        argument="diffusion",
        subfolder="scheduler",
        config="scheduler_config.json",
    )
    alphas, levels = scheduler.alphas_cumprod, scheduler.config.num_train_timesteps
    if alphas.shape != (levels,) or not ((alphas >= 0) & (alphas <= 1)).all():
        extremes = f" from {float(alphas.min())} to {float(alphas.max())}" if alphas.numel() else ""
        raise ModelLoadError(
            f"diffusion: the noise schedule of {source} has levels of shape {tuple(alphas.shape)}{extremes}; expected "
            f"{levels} from 0 to 1"
        )
    return scheduler
