"""Models that denoise an autoencoder's latent: from an image to a noised latent, and what attends to it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from PIL import Image

from nerve_kernels._operators.checks import check_count
from nerve_kernels.segmentation.checkpoints.fingerprints import Fingerprint, own_settings
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.images import to_tensor

from .layers import select_layers
from .model_attention import ModelAttention
from .source import CapturedLayer


class LatentAttention(ModelAttention):
    """Queries and keys of a model that denoises latents.

    The image becomes the mean of its latent, is noised to each timestep t of T with the same ε whatever the image,

        x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε ,    or    x_t = (1 − σ) · x_0 + σ · ε  with σ = t / T

    where the model was trained by flow matching, and goes through the model once with the empty prompt.

    Args:
        model: what denoises.
        vae: ``AutoencoderKL``, ``AutoencoderKLFlux2`` or ``AutoencoderTiny``.
        scheduler: a diffusers scheduler with the checkpoint's noise schedule; one without ``alphas_cumprod`` stands for
            flow matching.
        empty_prompt: (1, length, D) the text encoders' answer to the empty prompt.
        pooled_prompt: (1, D') the answer as a whole, where the model takes such.
        latent_multiple: what the latent's sides are multiples of.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        vae: Any,
        scheduler: Any,
        empty_prompt: torch.Tensor,
        pooled_prompt: torch.Tensor | None,
        latent_multiple: int,
    ) -> None:
        self.vae = vae
        self.scheduler = scheduler
        self.empty_prompt = empty_prompt
        self.pooled_prompt = pooled_prompt
        self.latent_factor = 2 ** (len(vae.config.block_out_channels) - 1) * self._side_of_patches
        self.latent_multiple = latent_multiple
        super().__init__(model=model, unit=self.latent_factor, multiple=self.latent_factor * latent_multiple)
        self._fingerprint = Fingerprint(self.settings, model, vae)

    @abstractmethod
    def denoise(self, noisy: torch.Tensor, timestep: int, prompt: torch.Tensor | None = None) -> torch.Tensor:
        """One pass; with the empty prompt where none is given."""

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """The models that hold its weights."""
        return self.model, self.vae

    @property
    def levels(self) -> int:
        """How many timesteps its noise schedule has."""
        return int(self.scheduler.config.num_train_timesteps)

    def fingerprint(self) -> str:
        """A digest of weights, settings, noise schedule and prompt."""
        return self._fingerprint()

    def settings(self) -> dict[str, Any]:
        """What its answers depend on beside its weights."""
        alphas = getattr(self.scheduler, "alphas_cumprod", None)
        return {
            "vae": own_settings(self.vae),
            "schedule": {"flow": self.levels} if alphas is None else alphas.tolist(),
            "prompt": self.empty_prompt.float().cpu().tolist(),
            **({} if self.pooled_prompt is None else {"pooled": self.pooled_prompt.float().cpu().tolist()}),
        }

    def check_timesteps(self, timesteps: Sequence[int]) -> int:
        """Raise ValueError where the noise schedule has no such timestep; else say how many there are."""
        last = self.levels - 1
        for timestep in timesteps:
            check_count("timesteps", timestep, high=last, wanted=f"from 0 to {last} for this schedule")
        return len(timesteps)

    @torch.no_grad()
    def encode(self, image: Image.Image, *, short_side: int) -> torch.Tensor:
        """The scaled mean of the image's latent.

        Args:
            image: RGB.
            short_side: in pixels.

        Returns:
            (1, channels, height, width) in the VAE's dtype.
        """
        return self.encode_pixels(to_tensor(image, self.image_size((image.height, image.width), short_side)))

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scaled means of the latents of images (B, 3, height, width) in [0, 1]."""
        # One after the other on a CPU, whose caches hold the convolutions of one image and not of several.
        at_once = 1 if self.vae.device.type == "cpu" else len(pixels)
        return torch.cat([self._encode(some) for some in pixels.split(at_once)])

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.vae.encode((pixels * 2 - 1).to(self.vae.device, self.vae.dtype))
        mean = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents  # of AutoencoderTiny
        if self._side_of_patches > 1:  # FLUX.2: its latent's 2 x 2 places, each scaled by what training saw
            statistics = self.vae.bn
            mean = functional.pixel_unshuffle(mean, self._side_of_patches)
            scale = (statistics.running_var + self.vae.config.batch_norm_eps).rsqrt()
            return (mean - statistics.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (mean - shift) * self.vae.config.scaling_factor

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.vae.config.latent_channels) * self._side_of_patches**2

    @property
    def _side_of_patches(self) -> int:
        return 2 if hasattr(self.vae, "bn") else 1

    def add_noise(self, latent: torch.Tensor, timestep: int, generator: torch.Generator) -> torch.Tensor:
        """x_t of a latent.

        Args:
            latent: (B, channels, height, width); all of a batch get the same noise.
            timestep: 0 .. the schedule's last.
            generator: draws ε in float32 on its own device, so that a seed of a CPU generator
                means the same noise on every machine.

        Returns:
            A tensor like `latent`.

        Raises:
            ValueError: a timestep outside the schedule.
        """
        self.check_timesteps([timestep])
        noise = torch.randn((1, *latent.shape[1:]), generator=generator, device=generator.device).to(latent.device)
        if hasattr(self.scheduler, "alphas_cumprod"):
            noisy = self.scheduler.add_noise(latent.float(), noise, torch.tensor([timestep]))
        else:
            noisy = torch.lerp(latent.float(), noise, timestep / self.levels)
        return noisy.to(latent.dtype)

    def run_smallest(self) -> int:
        """One pass on the smallest latent, with one token of the prompt."""
        side = self.latent_multiple
        self.denoise(torch.zeros(1, self.channels, side, side), 0, self.empty_prompt[:, :1])
        return side

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
            timesteps: one pass each.
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

            captured += self.capture_run(run, names, timestep=timestep, stop_early=stop_early)
        return captured

    def capture_pixels(self, pixels: torch.Tensor, config: NerveConfig) -> list[CapturedLayer]:
        """:meth:`encode_pixels`, then :meth:`capture`."""
        return self.capture(
            self.encode_pixels(pixels),
            timesteps=config.timesteps,
            layers=config.layers,
            # On the CPU, so that a seed means the same noise on every machine.
            generator=torch.Generator().manual_seed(config.noise_seed),
        )
