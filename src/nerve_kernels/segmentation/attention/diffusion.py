"""Stable Diffusion's self-attention: from an image to the queries and keys of its UNet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from nerve_kernels.segmentation.checkpoints.fingerprints import own_settings
from nerve_kernels.segmentation.locks import alone_in

from .latents import LatentAttention
from .source import AttentionSource
from .stable_diffusion import load_stable_diffusion

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel


class DiffusionFeatures(LatentAttention):
    """Queries and keys of a Stable Diffusion UNet (1.x, 2.x or XL) for an image; see :class:`.latents.LatentAttention`.

    Args:
        unet: ``UNet2DConditionModel``.
        vae: ``AutoencoderKL``, or ``AutoencoderTiny`` of the same latent.
        scheduler: ``DDPMScheduler`` with the checkpoint's noise schedule.
        empty_prompt: (1, length, D) the text encoder's answer to the empty prompt.
        pooled_prompt: (1, D) the answer as a whole, for Stable Diffusion XL; it is also told the size of the image.

    Raises:
        ValueError: a UNet that needs more than a latent, a timestep and a prompt.

    Source:
        NERVE, arXiv 2511.08248; timestep and layers are not published.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        scheduler: DDPMScheduler,
        empty_prompt: torch.Tensor,
        pooled_prompt: torch.Tensor | None = None,
    ) -> None:
        wanted = None if pooled_prompt is None else "text_time"
        if unet.config.addition_embed_type != wanted or unet.config.class_embed_type is not None:
            raise ValueError(
                "diffusion: this UNet needs other conditions beside the prompt; wanted a Stable Diffusion 1.x, 2.x or "
                "XL checkpoint"
            )
        if unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"diffusion: the UNet takes {unet.config.in_channels} channels and the VAE's "
                f"latent has {vae.config.latent_channels} (inpainting checkpoints differ so); "
                "wanted a text-to-image checkpoint"
            )
        self.unet = unet
        super().__init__(
            model=unet,
            vae=vae,
            scheduler=scheduler,
            empty_prompt=empty_prompt,
            pooled_prompt=pooled_prompt,
            latent_multiple=2 ** (len(unet.config.block_out_channels) - 1),
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        autoencoder: str | os.PathLike[str] | None = None,
    ) -> DiffusionFeatures:
        """Load UNet, VAE, noise schedule and text encoder; the text encoder is let go again.

        Args:
            source: a folder in the hub's Stable Diffusion format (1.x, 2.x or XL), or a model id of the hub.
            device: None: a GPU if there is one.
            dtype: None: float16 on a GPU, else float32.
            autoencoder: in place of the checkpoint's own VAE a folder or model id of another one of the same latent,
                such as ``madebyollin/taesd``.

        Returns:
            The extractor.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ModelLoadError: incomplete folder, unknown id, or no connection.
        """
        return cls(**load_stable_diffusion(source, device, dtype, autoencoder))

    def settings(self) -> dict[str, Any]:
        """What its answers depend on beside its weights."""
        return {"unet": own_settings(self.unet), **super().settings()}

    @torch.no_grad()
    def denoise(self, noisy: torch.Tensor, timestep: int, prompt: torch.Tensor | None = None) -> torch.Tensor:
        """One UNet pass, with the empty prompt where none is given: (B, channels, height, width) to the same."""
        prompt = (self.empty_prompt if prompt is None else prompt).expand(noisy.shape[0], -1, -1)
        noisy = noisy.to(self.unet.device, self.unet.dtype)
        options = {} if self.pooled_prompt is None else {"added_cond_kwargs": self._conditions(noisy)}
        with alone_in(self.unet):  # its hooks, if another thread is capturing, are not for this pass
            return self.unet(noisy, timestep, encoder_hidden_states=prompt, return_dict=False, **options)[0]

    def _conditions(self, noisy: torch.Tensor) -> dict[str, torch.Tensor]:
        """What XL is told besides: the prompt as a whole, and an image of this size that is not cropped."""
        assert self.pooled_prompt is not None
        size = [side * self.latent_factor for side in noisy.shape[-2:]]
        ids = torch.tensor([[*size, 0, 0, *size]], device=noisy.device, dtype=noisy.dtype)
        batch = noisy.shape[0]
        return {"text_embeds": self.pooled_prompt.expand(batch, -1), "time_ids": ids.expand(batch, -1)}


if TYPE_CHECKING:
    _: type[AttentionSource] = DiffusionFeatures
