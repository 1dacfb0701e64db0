"""A vision transformer's self-attention (DINOv2, DINOv3, ViT): one pass, no autoencoder, no noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.checkpoints.fingerprints import Fingerprint, own_settings
from nerve_kernels.segmentation.checkpoints.preprocessor import pixel_statistics
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.loading import ModelLoadError, choose_device, choose_dtype, freeze, load_part

from .layers import select_layers
from .model_attention import ModelAttention
from .source import AttentionSource, CapturedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WITHOUT_POOLER = ("vit", "deit")  # whose pooling layer most checkpoints lack, and nothing here needs
FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit", *WITHOUT_POOLER)
"""Values of ``model_type`` in a checkpoint's config that are read here."""


class VisionTransformerFeatures(ModelAttention):
    """Queries and keys of a vision transformer for an image: of its patches, without class token and registers.

    Of a config, `diffusion_size` is the shorter side of the image that it is given, and `layers` chooses its blocks;
    timesteps and noise are none of its.

    Args:
        model: a transformers model of one of ``FAMILIES``.
        mean, std: per channel, for pixels in [0, 1].

    Source:
        NERVE, arXiv 2511.08248, has Stable Diffusion's attention; this family is ours.
    """

    def __init__(self, *, model: PreTrainedModel, mean: Sequence[float], std: Sequence[float]) -> None:
        self.patch_size = int(model.config.patch_size)
        super().__init__(model=model, unit=self.patch_size, multiple=self.patch_size)
        self.model: PreTrainedModel = model
        self._mean = torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
        # positions of square images are brought to others where the model does not do that by itself
        self._options = {"interpolate_pos_encoding": True} if model.config.model_type in WITHOUT_POOLER else {}
        self._fingerprint = Fingerprint(self._settings, model)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> VisionTransformerFeatures:
        """Load a checkpoint.

        Args:
            source: a folder in the hub's format, or a model id of the hub.
            device: None: a GPU if there is one.
            dtype: None: float16 on a GPU, else float32.

        Returns:
            The model, ready.

        Raises:
            MissingExtraError: transformers is not installed.
            ModelLoadError: incomplete folder, another kind of model, unknown id, or no connection.
        """
        require_extra("transformers")
        from transformers import AutoConfig, AutoModel

        device = choose_device(device)
        settings = load_part(AutoConfig.from_pretrained, source, argument="diffusion", config="config.json")
        if settings.model_type not in FAMILIES:
            wanted = f"model_type one of {', '.join(FAMILIES)}"
            raise ModelLoadError(f"diffusion: {refusal('config.json', wanted, settings.model_type)}")
        options: dict[str, Any] = {"add_pooling_layer": False} if settings.model_type in WITHOUT_POOLER else {}
        model = load_part(
            AutoModel.from_pretrained,
            source,
            argument="diffusion",
            config="config.json",
            weights="model.safetensors",
            attn_implementation="sdpa",
            **options,
        )
        mean, std = pixel_statistics(source, argument="diffusion")
        freeze(model, device, choose_dtype(dtype, device))
        return cls(model=model, mean=mean, std=std)

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """The models that hold its weights."""
        return (self.model,)

    def fingerprint(self) -> str:
        """A digest of weights, settings and pixel statistics."""
        return self._fingerprint()

    def _settings(self) -> dict[str, Any]:
        statistics = {"mean": self._mean.flatten().tolist(), "std": self._std.flatten().tolist()}
        return {"model": own_settings(self.model), **statistics}

    def run_smallest(self) -> int:
        """One pass on four by four patches."""
        side = 4 * self.patch_size
        self._run(torch.zeros(1, 3, side, side))
        return 4

    def capture_pixels(self, pixels: torch.Tensor, config: NerveConfig) -> list[CapturedLayer]:
        """The chosen blocks, in one pass."""
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        names = [layer.name for layer in select_layers(self.layers, config.layers, latent_size=grid)]
        return self.capture_run(lambda: self._run((pixels - self._mean) / self._std), names)

    def _run(self, pixels: torch.Tensor) -> None:
        self.model(pixel_values=pixels.to(self.model.device, self.model.dtype), **self._options)


if TYPE_CHECKING:
    _: type[AttentionSource] = VisionTransformerFeatures
