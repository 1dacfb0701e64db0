"""CLIP, densely: an embedding for every patch of an image, and one for every name."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as functional
from PIL import Image

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.checkpoints.fingerprints import Fingerprint, own_settings
from nerve_kernels.segmentation.checkpoints.preprocessor import pixel_statistics
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.finite import require_finite
from nerve_kernels.segmentation.images import places_by_size, size_for_model, to_tensor
from nerve_kernels.segmentation.loading import (
    ModelLoadError,
    check_vocabulary,
    choose_device,
    choose_dtype,
    freeze,
    load_part,
)
from nerve_kernels.segmentation.locks import alone_in
from nerve_kernels.segmentation.phases import CLIP_IMAGE, CLIP_WORDS

from .source import PatchEmbeddings, TextImageSource
from .templates import fill
from .text_tower import embed_rows
from .vision import dense_embeddings
from .windows import OverlapAverage, window_starts

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

WINDOWS_AT_ONCE = 16


class DenseClip:
    """A CLIP checkpoint that embeds patches and names in one space.

    Args:
        model: ``transformers.CLIPModel``.
        tokenizer: its tokenizer.
        mean, std: per channel, for pixels in [0, 1].

    Source:
        MaskCLIP, arXiv 2112.01071 (value path); ClearCLIP, arXiv 2407.12442 (self-self
        attention, no residual, no feed-forward).
    """

    def __init__(
        self,
        *,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.patch_size = int(model.config.vision_config.patch_size)
        self.native_size = int(model.config.vision_config.image_size)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
        self._fingerprint = Fingerprint(self._settings, model)
        self._known_names: dict[tuple[str, tuple[str, ...]], torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> DenseClip:
        """Load a checkpoint.

        Args:
            source: a folder in the hub's CLIP format, or a model id of the hub.
            device: None: a GPU if there is one.
            dtype: None: float16 on a GPU, else float32.

        Returns:
            The model, ready.

        Raises:
            MissingExtraError: transformers is not installed.
            ModelLoadError: incomplete folder, unknown id, or no connection.
        """
        require_extra("transformers")
        from transformers import CLIPModel, CLIPTokenizer

        device = choose_device(device)
        model: CLIPModel = load_part(
            CLIPModel.from_pretrained, source, argument="clip", config="config.json", weights="model.safetensors"
        )
        tokenizer: CLIPTokenizer = load_part(
            CLIPTokenizer.from_pretrained, source, argument="clip", config="tokenizer_config.json"
        )
        return cls._assembled(source, model, tokenizer, pixel_statistics(source, argument="clip"), device, dtype)

    @classmethod
    def _assembled(
        cls,
        source: str | os.PathLike[str],
        model: Any,
        tokenizer: Any,
        statistics: tuple[Sequence[float], Sequence[float]],
        device: torch.device,
        dtype: str | torch.dtype | None,
    ) -> Self:
        """The parts of a checkpoint, checked against each other, as one."""
        check_vocabulary(tokenizer, model.config.text_config, argument="clip")
        freeze(model, device, choose_dtype(dtype, device))
        loaded = cls(model=model, tokenizer=tokenizer, mean=statistics[0], std=statistics[1])
        if not 0 < loaded.logit_scale < math.inf:
            raise ModelLoadError(f"clip: the logit_scale of {source} gives {loaded.logit_scale}; expected a number > 0")
        return loaded

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.logit_scale.dtype

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """The models that hold its weights."""
        return (self.model,)

    def fingerprint(self) -> str:
        """A digest of weights, settings, vocabulary and pixel statistics."""
        return self._fingerprint()

    def _settings(self) -> dict[str, Any]:
        return {
            "model": own_settings(self.model),
            "vocabulary": self.tokenizer.get_vocab(),
            "longest": self.tokenizer.model_max_length,
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
        }

    def check(self, config: NerveConfig) -> None:
        """Refuse a config that this model cannot follow.

        Args:
            config: clip_window and clip_stride are looked at.

        Raises:
            ValueError: names the field, what was expected, what came.
        """
        if config.clip_window is not None:
            self._check_windows(config.clip_window, config.clip_stride)

    def _check_windows(self, window: int, stride: int) -> None:
        patch = self.patch_size
        for name, value in (("clip_window", window), ("clip_stride", stride)):
            if value % patch or value < patch:
                multiple = f"a multiple of this model's patch of {patch} pixels"
                raise ValueError(refusal(name, multiple, value, f"try {max(1, round(value / patch)) * patch}"))

    @property
    def logit_scale(self) -> float:
        """The learned factor on cosine similarities, about 100 for OpenAI's models."""
        return float(self.model.logit_scale.float().exp())

    def image_size(self, size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
        """The size an image is resized to: whole patches, the aspect ratio as near as they allow.

        Args:
            size: (height, width) in pixels.
            short_side: in pixels; None: the model's own.

        Returns:
            (height, width), multiples of the patch side.
        """
        return size_for_model(size, short_side or self.native_size, self.patch_size)

    def embed_images(self, images: Sequence[Image.Image], config: NerveConfig) -> list[PatchEmbeddings]:
        """An embedding for each patch of each image, as the config says; see :meth:`embed_image`.

        Images of one size go through the model together.
        """
        sizes = [self.image_size((image.height, image.width), config.clip_size) for image in images]
        found: dict[int, PatchEmbeddings] = {}
        for size, places in places_by_size(sizes).items():
            embedded = self._embed_pixels(
                torch.cat([to_tensor(images[place], size) for place in places]),
                window=config.clip_window,
                stride=config.clip_stride,
                features=config.dense_features,
                residual=config.clip_residual,
                feed_forward=config.clip_feed_forward,
            )
            found |= zip(places, embedded, strict=True)
        return [found[place] for place in range(len(images))]

    def embed_image(
        self,
        image: Image.Image,
        *,
        short_side: int | None = None,
        window: int | None = None,
        stride: int = 112,
        features: str = "key_key",
        residual: bool = False,
        feed_forward: bool = False,
    ) -> PatchEmbeddings:
        """An embedding for each patch.

        Args:
            image: RGB, any size.
            short_side: shorter side to resize to, in pixels; None: the model's own.
            window: side of sliding windows in pixels, a multiple of the patch; None: the whole
                image at once, with interpolated position embeddings.
            stride: step between windows in pixels, a multiple of the patch. Where windows
                overlap, their embeddings are averaged, which averages their similarities.
            features, residual, feed_forward: see
                :func:`nerve_kernels.segmentation.text_image.vision.dense_embeddings`.

        Returns:
            The embeddings and their grid.

        Raises:
            ValueError: window or stride that are no multiples of the patch.
        """
        pixels = to_tensor(image, self.image_size((image.height, image.width), short_side))
        reading: dict[str, Any] = {"features": features, "residual": residual, "feed_forward": feed_forward}
        return self._embed_pixels(pixels, window=window, stride=stride, **reading)[0]

    @torch.no_grad()
    def _embed_pixels(
        self, pixels: torch.Tensor, *, window: int | None, stride: int, **reading: Any
    ) -> list[PatchEmbeddings]:
        """:meth:`embed_image` for images (B, 3, height, width) in [0, 1], whose sides are multiples of the patch."""
        patch, (height, width) = self.patch_size, pixels.shape[-2:]
        if window is not None:
            self._check_windows(window, stride)
        pixels = (pixels - self._mean) / self._std
        view_height, view_width = (min(window or side, side) for side in (height, width))
        corners = [
            (image, top, left)
            for image in range(len(pixels))
            for top in window_starts(height, view_height, stride)
            for left in window_starts(width, view_width, stride)
        ]
        averages: list[OverlapAverage] = []
        for first in range(0, len(corners), WINDOWS_AT_ONCE):
            some = corners[first : first + WINDOWS_AT_ONCE]
            views = torch.stack([pixels[image, :, y : y + view_height, x : x + view_width] for image, y, x in some])
            seen = dense_embeddings(self.model, views.to(self.device), **reading)
            for (image, top, left), one in zip(some, seen, strict=True):
                if image == len(averages):
                    averages.append(OverlapAverage(height // patch, width // patch, seen.shape[-1], self.device))
                averages[image].add(one, top // patch, left // patch)
        means = [require_finite(average.mean(), CLIP_IMAGE) for average in averages]
        return [PatchEmbeddings(mean.flatten(0, 1), (mean.shape[0], mean.shape[1])) for mean in means]

    @torch.no_grad()
    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """One embedding a name: the mean over the templates, of unit length before and after.

        Args:
            names: what to look for.
            templates: prompts with ``{}`` for the name.

        Returns:
            (names, D) float32 on the model's device.
        """
        key = tuple(templates)
        with alone_in(self.model):  # the tokenizer is changed by every call
            new = [name for name in dict.fromkeys(names) if (name, key) not in self._known_names]
            prompts = [fill(template, name) for name in new for template in key]
            if prompts:
                by_prompt = require_finite(self._embed_prompts(prompts), CLIP_WORDS)
                means = functional.normalize(by_prompt.unflatten(0, (len(new), -1)).mean(1), dim=-1)
                for name, mean in zip(new, means, strict=True):
                    self._known_names[name, key] = mean
            return torch.stack([self._known_names[name, key] for name in names])

    def _embed_prompts(self, prompts: list[str]) -> torch.Tensor:
        limit = self.model.config.text_config.max_position_embeddings
        longest = min(self.tokenizer.model_max_length, limit)
        rows: list[list[int]] = self.tokenizer(prompts, truncation=True, max_length=longest).input_ids
        return embed_rows(self.model, rows)


if TYPE_CHECKING:
    _: type[TextImageSource] = DenseClip
