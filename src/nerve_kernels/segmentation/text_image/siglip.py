"""SigLIP and SigLIP 2, densely: CLIP's readings, through a head that pools by attention."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.checkpoints.preprocessor import pixel_statistics
from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.loading import (
    ModelLoadError,
    choose_device,
    load_part,
)

from .clip import DenseClip
from .source import TextImageSource

PROMPTS_AT_ONCE = 128


class DenseSiglip(DenseClip):
    """A SigLIP checkpoint that embeds patches and names in one space.

    A patch's embedding is what the pooling head would make of an image of which its probe saw that patch alone. The
    model was trained to answer yes or no for each label by itself; here labels compete, as everywhere in this package:
    seeds are a softmax over labels of its scaled similarities, and its bias, the same for all of them, falls out.

    Args:
        model: ``transformers.SiglipModel``, which SigLIP 2 at fixed resolutions is too.
        tokenizer: its tokenizer.
        mean, std: per channel, for pixels in [0, 1].

    Source:
        SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786; the dense readings as for CLIP.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> DenseSiglip:
        """Load a checkpoint; as :meth:`DenseClip.from_pretrained`."""
        require_extra("transformers")
        from transformers import AutoConfig, AutoTokenizer, SiglipModel

        device = choose_device(device)
        settings = load_part(AutoConfig.from_pretrained, source, argument="clip", config="config.json")
        if settings.model_type != "siglip":
            raise ModelLoadError(f"clip: {refusal('config.json', 'model_type siglip', settings.model_type)}")
        widths = settings.vision_config.hidden_size, settings.text_config.projection_size
        if widths[0] != widths[1]:
            said = refusal("config.json", "images and words of one width", f"{widths[0]} and {widths[1]}")
            raise ModelLoadError(f"clip: {said}")
        model = load_part(
            SiglipModel.from_pretrained, source, argument="clip", config="config.json", weights="model.safetensors"
        )
        tokenizer = load_part(AutoTokenizer.from_pretrained, source, argument="clip", config="tokenizer_config.json")
        if tokenizer.pad_token_id is None:
            raise ModelLoadError("clip: tokenizer_config.json: expected a pad_token: the text tower reads full lengths")
        return cls._assembled(source, model, tokenizer, pixel_statistics(source, argument="clip"), device, dtype)

    def _embed_prompts(self, prompts: list[str]) -> torch.Tensor:
        """Every token looks at every other, padding included, as in training: nothing of one prompt serves another."""
        longest = int(self.model.config.text_config.max_position_embeddings)
        rows: Any = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).input_ids
        tower: Any = self.model.text_model
        parts = [tower(input_ids=some.to(self.device)).pooler_output.float() for some in rows.split(PROMPTS_AT_ONCE)]
        return functional.normalize(torch.cat(parts), dim=-1)


if TYPE_CHECKING:
    _: type[TextImageSource] = DenseSiglip
