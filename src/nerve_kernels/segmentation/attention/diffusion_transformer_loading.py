"""A diffusion transformer's checkpoint: its parts, and its answer to the empty prompt, computed or saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.loading import ModelLoadError, choose_device, choose_dtype, load_part
from nerve_kernels.segmentation.output.files import write_atomic

from .diffusion_transformer_families import FAMILIES, Family, Prompt
from .stable_diffusion import load_diffusion_noise, load_model, load_vae
from .text_encoders import SAVED_PROMPT, TextEncoders, load_saved_prompt, require_finite_prompt


def load_diffusion_transformer(
    source: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    autoencoder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Load transformer, VAE and scheduler, and the answer to the empty prompt.

    Args:
        source: a folder in the hub's format, or a model id of the hub.
        device: None: a GPU if there is one.
        dtype: None: bfloat16 on a GPU, for float16 overflows in FLUX; else float32.
        autoencoder: None: the checkpoint's own VAE.

    Returns:
        The arguments of :class:`~.diffusion_transformer.DiffusionTransformerFeatures`, by name.

    Raises:
        MissingExtraError: diffusers or transformers is not installed.
        ModelLoadError: incomplete folder, unknown id, or no connection.
    """
    require_extra("diffusers", "transformers")
    import diffusers

    device = choose_device(device)
    if dtype is None and device.type == "cuda":
        dtype = torch.bfloat16
    dtype = choose_dtype(dtype, device)
    config, name, family = _find_family(source)
    prompt = _prompt_of(source, family, config, device, dtype)  # first: text encoders are gone before the rest comes
    load: Callable[..., Any] = getattr(diffusers, name).from_pretrained
    transformer = load_model(load, source, device, dtype, subfolder="transformer")
    if family.flow:
        flow = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained
        scheduler = load_part(flow, source, argument="diffusion", subfolder="scheduler", config="scheduler_config.json")
    else:
        scheduler = load_diffusion_noise(source)
    return {
        "transformer": transformer,
        "vae": load_vae(source, device, dtype, autoencoder),
        "scheduler": scheduler,
        "empty_prompt": prompt[0],
        "pooled_prompt": prompt[1],
    }


def save_empty_prompt(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], *, device: str | torch.device | None = None
) -> Path:
    """Write what a checkpoint's text encoders say to the empty prompt; a folder that holds it needs none of them.

    Args:
        source: a folder in the hub's format, or a model id of the hub; of it only text encoders are loaded, one after
            the other.
        folder: where ``empty_prompt.safetensors`` goes: that of the checkpoint which is to do without.
        device: None: a GPU if there is one.

    Returns:
        The file.

    Raises:
        MissingExtraError: diffusers or transformers is not installed.
        ModelLoadError: they cannot be loaded, or answer NaN.
    """
    require_extra("diffusers", "transformers")
    from safetensors.torch import save

    config, _, family = _find_family(source)
    states, pooled = _prompt_of(source, family, config, choose_device(device), torch.float32)
    parts = {"prompt_embeds": states} | ({} if pooled is None else {"pooled_prompt_embeds": pooled})
    return write_atomic(
        Path(folder) / SAVED_PROMPT, save({name: part.cpu().contiguous() for name, part in parts.items()})
    )


def _find_family(source: str | os.PathLike[str]) -> tuple[Any, str, Family]:
    """The transformer's config, checked before anything is built, its class's name and what is known of it."""
    from diffusers import AutoencoderKL
    from diffusers.configuration_utils import FrozenDict

    read = AutoencoderKL.load_config  # which any class has, for any config
    config = FrozenDict(load_part(read, source, argument="diffusion", subfolder="transformer", config="config.json"))
    name = config.get("_class_name")
    if name not in FAMILIES:
        wanted = f"_class_name one of {', '.join(FAMILIES)}"
        raise ModelLoadError(f"diffusion: {refusal('transformer/config.json', wanted, name)}")
    return config, name, FAMILIES[name]


def _prompt_of(
    source: str | os.PathLike[str], family: Family, config: Any, device: torch.device, dtype: torch.dtype
) -> Prompt:
    prompt = load_saved_prompt(source)
    if prompt is None and family.embed_prompt is None:
        raise ModelLoadError(
            f"diffusion: {source}: expected {SAVED_PROMPT} in the checkpoint's folder, for its text encoder is not run "
            "here, got none; docs/any_model.md says how to make it"
        )
    if prompt is None:
        assert family.embed_prompt is not None
        prompt = family.embed_prompt(TextEncoders(source, device, dtype), config)
    require_finite_prompt(source, *prompt)
    states, pooled = prompt
    return states.to(device, dtype), None if pooled is None else pooled.to(device, dtype)
