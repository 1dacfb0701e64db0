"""The self-attention of diffusion transformers: Stable Diffusion 3.x, FLUX.1, FLUX.2, PixArt-Σ."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.checkpoints.fingerprints import digest_of_tensors, own_settings
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.locks import alone_in

from .diffusion_transformer_families import FAMILIES
from .diffusion_transformer_loading import load_diffusion_transformer
from .latents import LatentAttention
from .source import AttentionSource


class DiffusionTransformerFeatures(LatentAttention):
    """Queries and keys of a diffusion transformer for an image; see :class:`.latents.LatentAttention`.

    Args:
        transformer: ``SD3Transformer2DModel``, ``FluxTransformer2DModel``, ``Flux2Transformer2DModel`` or
            ``PixArtTransformer2DModel`` of diffusers.
        vae: its autoencoder.
        scheduler: its scheduler; of one for flow matching only the number of timesteps is used.
        empty_prompt: (1, length, D) the text encoders' answer to the empty prompt.
        pooled_prompt: (1, D') the answer as a whole, for Stable Diffusion 3.x and FLUX.1.

    Raises:
        ValueError: parts that do not belong together.

    Source:
        Stable Diffusion 3, arXiv 2403.03206; PixArt-Σ, arXiv 2403.04692; as a source of attention ours.
    """

    def __init__(
        self,
        *,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        empty_prompt: torch.Tensor,
        pooled_prompt: torch.Tensor | None = None,
    ) -> None:
        self.family = FAMILIES[type(transformer).__name__]
        self.transformer = transformer
        config = transformer.config
        super().__init__(
            model=transformer,
            vae=vae,
            scheduler=scheduler,
            empty_prompt=empty_prompt,
            pooled_prompt=pooled_prompt,
            latent_multiple=self.family.packing or int(config.patch_size),
        )
        channels = self.channels * (self.family.packing or 1) ** 2
        if config.in_channels != channels:
            taken = f"{config.in_channels} channels, as the transformer takes"
            raise ValueError(f"diffusion: {refusal('vae', taken, channels)}")
        widths: dict[str, tuple[torch.Tensor | None, int]] = {
            "prompt_embeds": (empty_prompt, config[self.family.prompt_width])
        }
        if self.family.pooled:
            widths["pooled_prompt_embeds"] = pooled_prompt, config["pooled_projection_dim"]
        for name, (part, width) in widths.items():
            if part is None or part.shape[-1] != width:
                got = None if part is None else part.shape[-1]
                raise ValueError(f"diffusion: {refusal(name, f'{width} wide, as the transformer takes', got)}")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        autoencoder: str | os.PathLike[str] | None = None,
    ) -> DiffusionTransformerFeatures:
        """Load transformer, VAE, scheduler and text encoders; the text encoders are let go again.

        Args:
            source: a folder in the hub's format, or a model id of the hub. Where a folder holds
                ``empty_prompt.safetensors``, of :func:`save_empty_prompt`, its text encoders need not be there.
            device: None: a GPU if there is one.
            dtype: None: bfloat16 on a GPU, else float32.
            autoencoder: in place of the checkpoint's own VAE a folder or model id of another one of the same latent,
                such as ``madebyollin/taesd``.

        Returns:
            The extractor.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ModelLoadError: incomplete folder, unknown id, or no connection.
        """
        return cls(**load_diffusion_transformer(source, device, dtype, autoencoder))

    def settings(self) -> dict[str, Any]:
        """What its answers depend on beside its weights."""
        prompts = [part for part in (self.empty_prompt, self.pooled_prompt) if part is not None]
        shared = {name: value for name, value in super().settings().items() if name not in ("prompt", "pooled")}
        return {"transformer": own_settings(self.transformer), **shared, "prompt": digest_of_tensors(*prompts)}

    def check(self, config: NerveConfig) -> None:
        """Refuse a config that this model cannot follow; as :meth:`.ModelAttention.check`."""
        super().check(config)
        most = self.transformer.config.get("pos_embed_max_size")
        side = self.image_size((1, 1), config.diffusion_size)[0] // self.multiple
        if most is not None and side > most:
            wanted = f"at most {most * self.multiple}, for which this model has positions"
            raise ValueError(refusal("diffusion_size", wanted, config.diffusion_size))

    @torch.no_grad()
    def denoise(self, noisy: torch.Tensor, timestep: int, prompt: torch.Tensor | None = None) -> torch.Tensor:
        """One pass: (B, channels, height, width) to what the transformer makes of it, packed where it packs."""
        batch = noisy.shape[0]
        states = self.empty_prompt if prompt is None else prompt
        model: Any = self.transformer
        arguments = self.family.arguments(
            noisy.to(model.device, model.dtype),
            torch.full((batch,), timestep / self.levels, device=model.device),
            states.to(model.device, model.dtype).expand(batch, -1, -1),
            model.config,
        )
        if self.pooled_prompt is not None and self.family.pooled:
            arguments["pooled_projections"] = self.pooled_prompt.to(model.device, model.dtype).expand(batch, -1)
        with alone_in(model):  # its hooks, if another thread is capturing, are not for this pass
            answer: torch.Tensor = model(**arguments, return_dict=False)[0]
        return answer


if TYPE_CHECKING:
    _: type[AttentionSource] = DiffusionTransformerFeatures
