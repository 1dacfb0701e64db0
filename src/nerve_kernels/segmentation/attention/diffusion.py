"""Stable Diffusion's self-attention: from an image to the queries and keys of its UNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from nerve_kernels._operators.checks import check_count
from nerve_kernels.segmentation.checkpoints.fingerprints import Fingerprint, own_settings
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.images import size_for_model, to_tensor
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.locks import alone_in

from .affinity_building import check_affinity_settings
from .capture import capture_layers, list_layers, number_of_heads, self_attention_modules
from .layers import SelfAttentionLayer, select_layers
from .source import AttentionSource, CapturedLayer
from .stable_diffusion import load_stable_diffusion

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel


class DiffusionFeatures:
    """Queries and keys of a Stable Diffusion UNet for an image.

    The image becomes the mean of its VAE latent, is noised to each timestep,

        x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε ,

    and goes through the UNet once with the empty prompt.

    Args:
        unet: ``UNet2DConditionModel``.
        vae: ``AutoencoderKL``.
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
        vae: AutoencoderKL,
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
        self.vae = vae
        self.scheduler = scheduler
        self.empty_prompt = empty_prompt
        self.pooled_prompt = pooled_prompt
        self.latent_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        self._layers: tuple[SelfAttentionLayer, ...] | None = None
        self._fingerprint = Fingerprint(self._settings, unet, vae)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> DiffusionFeatures:
        """Load UNet, VAE, noise schedule and text encoder; the text encoder is let go again.

        Args:
            source: a folder in the hub's Stable Diffusion format (1.x, 2.x or XL), or a model id of the hub.
            device: None: a GPU if there is one.
            dtype: None: float16 on a GPU, else float32.

        Returns:
            The extractor.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ModelLoadError: incomplete folder, unknown id, or no connection.
        """
        return cls(**load_stable_diffusion(source, device, dtype))

    @property
    def layers(self) -> tuple[SelfAttentionLayer, ...]:
        """All self-attention layers in the order in which they run, with their grids."""
        if self._layers is None:
            # One pass on the smallest latent: neither order nor shrink depends on its size.
            side = self.latent_multiple
            latent = torch.zeros(1, self.unet.config.in_channels, side, side)
            try:
                self._layers = list_layers(self.unet, lambda: self.denoise(latent, 0), latent_size=(side, side))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, AttributeError, IndexError) as error:  # as of parts that do not fit
                reason = (str(error).strip().splitlines() or [repr(error)])[0]
                raise ModelLoadError(
                    f"diffusion: the UNet cannot run on a latent and the empty prompt: {reason}"
                ) from error
        return self._layers

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """The models that hold its weights."""
        return self.unet, self.vae

    def fingerprint(self) -> str:
        """A digest of weights, settings, noise schedule and prompt."""
        return self._fingerprint()

    def _settings(self) -> dict[str, Any]:
        return {
            "unet": own_settings(self.unet),
            "vae": own_settings(self.vae),
            "schedule": self.scheduler.alphas_cumprod.tolist(),
            "prompt": self.empty_prompt.float().cpu().tolist(),
            **({} if self.pooled_prompt is None else {"pooled": self.pooled_prompt.float().cpu().tolist()}),
        }

    def check(self, config: NerveConfig) -> None:
        """Refuse a config that this model cannot follow.

        Args:
            config: timesteps, layers, keep, window and cells are looked at.

        Raises:
            ValueError: names the field, what was expected, what came.
        """
        for timestep in config.timesteps:
            self.check_timestep(timestep)
        side = self.image_size((1, 1), config.diffusion_size)[0] // self.latent_factor
        layers = select_layers(self.layers, config.layers, latent_size=(side, side))
        modules = self_attention_modules(self.unet)
        maps = len(config.timesteps) * sum(number_of_heads(modules[layer.name]) for layer in layers)
        check_affinity_settings(config, maps=maps, sides=[side // layer.shrink for layer in layers])

    def image_size(self, size: tuple[int, int], short_side: int) -> tuple[int, int]:
        """The size an image is resized to: same aspect ratio, as near as the UNet allows.

        Args:
            size: (height, width) of the image in pixels.
            short_side: wanted shorter side in pixels.

        Returns:
            (height, width), multiples of what VAE and UNet need; see
            :func:`nerve_kernels.segmentation.images.size_for_model`.
        """
        return size_for_model(size, short_side, self.latent_factor * self.latent_multiple)

    @torch.no_grad()
    def encode(self, image: Image.Image, *, short_side: int) -> torch.Tensor:
        """The scaled mean of the image's latent.

        Args:
            image: RGB.
            short_side: in pixels.

        Returns:
            (1, channels, height, width) in the VAE's dtype.
        """
        size = self.image_size((image.height, image.width), short_side)
        pixels = (to_tensor(image, size) * 2 - 1).to(self.vae.device, self.vae.dtype)
        mean = self.vae.encode(pixels).latent_dist.mean
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (mean - shift) * self.vae.config.scaling_factor

    def add_noise(self, latent: torch.Tensor, timestep: int, generator: torch.Generator) -> torch.Tensor:
        """x_t = √ᾱ_t · latent + √(1 − ᾱ_t) · ε.

        Args:
            latent: (B, channels, height, width).
            timestep: 0 .. the schedule's last.
            generator: draws ε in float32 on its own device, so that a seed of a CPU generator
                means the same noise on every machine.

        Returns:
            A tensor like `latent`.

        Raises:
            ValueError: a timestep outside the schedule.
        """
        self.check_timestep(timestep)
        noise = torch.randn(latent.shape, generator=generator, device=generator.device)
        at = torch.full((latent.shape[0],), timestep, dtype=torch.long)
        noisy = self.scheduler.add_noise(latent.float(), noise.to(latent.device), at)
        return noisy.to(latent.dtype)

    def check_timestep(self, timestep: int) -> None:
        """Raise ValueError where the noise schedule has no such timestep."""
        last = int(self.scheduler.config.num_train_timesteps) - 1
        check_count("timesteps", timestep, high=last, wanted=f"from 0 to {last} for this schedule")

    @torch.no_grad()
    def denoise(self, noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        """One UNet pass with the empty prompt: (B, channels, height, width) to the same."""
        prompt = self.empty_prompt.expand(noisy.shape[0], -1, -1)
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

    def capture(
        self,
        latent: torch.Tensor,
        *,
        timesteps: Sequence[int],
        layers: Sequence[int | str],
        generator: torch.Generator,
        stop_early: bool = True,
    ) -> list[CapturedLayer]:
        """Queries and keys of the chosen layers at each timestep.

        Args:
            latent: (B, channels, height, width) from :meth:`encode`.
            timesteps: one UNet pass each.
            layers: selectors, see :func:`nerve_kernels.segmentation.attention.layers.select_layers`.
            generator: draws the noise, in the order of `timesteps`.
            stop_early: end each pass after the last wanted layer.

        Returns:
            The layers of the first timestep in the order in which they run, then the next.

        Raises:
            ValueError: a selector that fits no layer, or a timestep outside the schedule.
        """
        size = (int(latent.shape[-2]), int(latent.shape[-1]))
        names = [layer.name for layer in select_layers(self.layers, layers, latent_size=size)]
        captured: list[CapturedLayer] = []
        for timestep in timesteps:
            noisy = self.add_noise(latent, timestep, generator)

            def run(noisy: torch.Tensor = noisy, timestep: int = timestep) -> torch.Tensor:
                return self.denoise(noisy, timestep)

            found, _ = capture_layers(self.unet, names, run, timestep=timestep, stop_early=stop_early)
            captured += found
        return captured

    def __call__(self, images: Sequence[Image.Image], config: NerveConfig) -> list[list[CapturedLayer]]:
        """From images to queries and keys: :meth:`encode`, then :meth:`capture`, with the same noise for each.

        Args:
            images: RGB.
            config: diffusion_size, timesteps, layers and noise_seed are used.

        Returns:
            For each image the layers of the first timestep in the order in which they run, then the next.
        """
        return [
            self.capture(
                self.encode(image, short_side=config.diffusion_size),
                timesteps=config.timesteps,
                layers=config.layers,
                # On the CPU, so that a seed means the same noise on every machine.
                generator=torch.Generator().manual_seed(config.noise_seed),
            )
            for image in images
        ]


if TYPE_CHECKING:
    _: type[AttentionSource] = DiffusionFeatures
