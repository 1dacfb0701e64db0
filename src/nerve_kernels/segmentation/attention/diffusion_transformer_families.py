"""In what diffusion transformers differ: what they are told, and which text encoders answer for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from .text_encoders import TextEncoders

Prompt = tuple[Tensor, Tensor | None]
# (noised latent, σ or t / T of each image, the prompt's states, the transformer's config)
Arguments = Callable[[Tensor, Tensor, Tensor, Any], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One class of transformers in diffusers.

    Args:
        arguments: what it is called with, first its hidden states.
        prompt_width: the field of its config that says how wide the prompt's states are.
        embed_prompt: the states and the pooled answer to the empty prompt; None where a saved one is needed.
        pooled: whether it takes a pooled answer.
        packing: the side of the squares of the latent that are packed into a token beforehand; 0: it has patches of its
            own.
        flow: whether it was trained by flow matching.
    """

    arguments: Arguments
    prompt_width: str
    embed_prompt: Callable[[TextEncoders, Any], Prompt] | None
    pooled: bool = False
    packing: int = 0
    flow: bool = True


def _stable_diffusion_3(noisy: Tensor, share: Tensor, states: Tensor, config: Any) -> dict[str, Any]:
    return {"hidden_states": noisy, "encoder_hidden_states": states, "timestep": 1000 * share}


def _flux(noisy: Tensor, share: Tensor, states: Tensor, config: Any) -> dict[str, Any]:
    height, width = noisy.shape[-2] // 2, noisy.shape[-1] // 2
    return {
        "hidden_states": functional.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
        "encoder_hidden_states": states,
        "timestep": share,
        "img_ids": positions(1, height, width, 1)[:, :3],
        "txt_ids": torch.zeros(states.shape[1], 3),
        "guidance": torch.full_like(share, 3.5) if config.guidance_embeds else None,
    }


def _flux_2(noisy: Tensor, share: Tensor, states: Tensor, config: Any) -> dict[str, Any]:
    return {
        "hidden_states": noisy.flatten(2).transpose(1, 2),
        "encoder_hidden_states": states,
        "timestep": share,
        "img_ids": positions(1, *noisy.shape[-2:], 1),
        "txt_ids": positions(1, 1, 1, states.shape[1]),
        "guidance": torch.full_like(share, 4.0) if config.guidance_embeds else None,
    }


def _pixart(noisy: Tensor, share: Tensor, states: Tensor, config: Any) -> dict[str, Any]:
    batch, _, height, width = noisy.shape
    # Read by PixArt-α alone; a latent is 8 times smaller than its image.
    sizes = torch.tensor([[8.0 * height, 8.0 * width]], device=noisy.device, dtype=noisy.dtype).expand(batch, -1)
    told = {"resolution": sizes, "aspect_ratio": sizes[:, :1] / sizes[:, 1:]}
    return {
        "hidden_states": noisy,
        "encoder_hidden_states": states,
        "timestep": 1000 * share,
        "added_cond_kwargs": told,
    }


def positions(*sides: int) -> Tensor:
    """(product of the sides, number of sides): where each of the tokens in a row-major grid is.

    Example:
        >>> positions(1, 2, 2).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    """
    return torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in sides))


def _prompt_of_stable_diffusion_3(encoders: TextEncoders, config: Any) -> Prompt:
    """Both CLIPs beside each other, padded to T5's width, T5 behind them."""
    first, second = encoders.clip(projected=True), encoders.clip("_2", projected=True)
    words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    t5 = encoders.t5("_3", length=256)
    states = torch.cat([functional.pad(words, (0, t5.shape[-1] - words.shape[-1])), t5], dim=1)
    return states, torch.cat([first.text_embeds, second.text_embeds], dim=-1)


def _prompt_of_flux(encoders: TextEncoders, config: Any) -> Prompt:
    """T5's states, and CLIP's pooled answer; what is distilled to few steps was trained on shorter prompts."""
    return encoders.t5("_2", length=512 if config.guidance_embeds else 256), encoders.clip().pooler_output


def _prompt_of_pixart(encoders: TextEncoders, config: Any) -> Prompt:
    """Of the end mark alone: padding is masked."""
    return encoders.t5("", length=1), None


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "SD3Transformer2DModel": Family(
            _stable_diffusion_3, "joint_attention_dim", _prompt_of_stable_diffusion_3, pooled=True
        ),
        "FluxTransformer2DModel": Family(_flux, "joint_attention_dim", _prompt_of_flux, pooled=True, packing=2),
        "Flux2Transformer2DModel": Family(_flux_2, "joint_attention_dim", None, packing=1),
        "PixArtTransformer2DModel": Family(_pixart, "caption_channels", _prompt_of_pixart, flow=False),
    }
)
"""By the name of their class."""
