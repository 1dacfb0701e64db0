"""The whole method: from an image and words to a label for each pixel."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch

import nerve_kernels as nk
from nerve_kernels.affinity import Affinity

from .attention.affinity_building import AffinityBuilder
from .attention.source import AttentionSource
from .checkpoints.families import attention_family, text_image_family
from .config import CLIP_FIELDS, DIFFUSION_FIELDS, NerveConfig, check_backend, differing_field
from .features import ImageFeatures
from .finite import require_finite
from .images import ImageLike, load_image
from .loading import check_folder
from .output.pixel_refinement import refine_pixels
from .output.upsampling import best_labels
from .phases import CLIP_IMAGE, CLIP_WORDS, DIFFUSION, PIXELS, READ, REFINE, SEEDS, WALK, phase
from .presets import DEFAULT_PRESET, find_preset
from .result import Segmentation
from .seeds import Seeds, label_similarity, resize_seeds, seeds_from_similarity
from .text_image.prompts import LabelSet, LabelsLike, parse_labels, refuse_a_single_label
from .text_image.source import TextImageSource
from .text_image.templates import resolve_templates


class NervePipeline:
    """Training-free open-vocabulary segmentation.

    1. Stable Diffusion's self-attention, heads weighted by entropy, becomes an affinity S.
    2. CLIP's patches and the labels' words become seeds G.
    3. P = the random walk with restart of G over S; the best label at each pixel.

    Args:
        attention: where S comes from, such as :class:`~.attention.diffusion.DiffusionFeatures`.
        text_image: where G comes from, such as :class:`~.text_image.clip.DenseClip`.
        config: all hyperparameters.

    Raises:
        ValueError: a config that does not suit these models, such as layers they do not have.

    Source:
        NERVE, arXiv 2511.08248.
    """

    def __init__(
        self, *, attention: AttentionSource, text_image: TextImageSource, config: NerveConfig | None = None
    ) -> None:
        self.attention = attention
        self.text_image = text_image
        self.config = config or NerveConfig()
        self._check(self.config)

    @classmethod
    def from_pretrained(
        cls,
        *,
        diffusion: str | os.PathLike[str],
        clip: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        config: NerveConfig | None = None,
    ) -> NervePipeline:
        """Load two checkpoints; only safetensors are read and no code from the hub is run.

        Args:
            diffusion: folder or hub id of what attention comes from: a Stable Diffusion, FLUX or PixArt checkpoint,
                or a vision transformer (DINOv2, DINOv3, ViT, DeiT).
            clip: folder or hub id of a CLIP checkpoint, or of SigLIP's or SigLIP 2's at a fixed resolution.
            device: None: a GPU if there is one, else the CPU.
            dtype: None: float16 on a GPU, float32 elsewhere; or float32, float16, bfloat16.
            config: None: the defaults.

        Returns:
            The pipeline.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ModelLoadError: a checkpoint is incomplete, unknown, or out of reach.
            ValueError: a device or dtype that cannot be used.
        """
        families = attention_family(diffusion), text_image_family(clip)
        return cls(**_load(families, (diffusion, clip), device, dtype), config=config)

    @classmethod
    def from_preset(
        cls,
        name: str = DEFAULT_PRESET,
        *,
        diffusion: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        config: NerveConfig | None = None,
    ) -> NervePipeline:
        """Load a named pair of checkpoints with its settings.

        Args:
            name: ``"embedded"``, ``"sd15-clip-b16"``, ``"sd15-clip-l14"``, ``"sdxl-clip-l14"`` or
                ``"dinov2-clip-b16"``.
            diffusion: in place of the preset's checkpoint, another, as in :meth:`from_pretrained`.
            clip: likewise.
            device: as in :meth:`from_pretrained`.
            dtype: as in :meth:`from_pretrained`.
            config: in place of the preset's settings.

        Returns:
            The pipeline.

        Raises:
            ValueError: an unknown name. Else as :meth:`from_pretrained`.
        """
        preset = find_preset(name)
        family = preset.attention_family if diffusion is None else attention_family(diffusion)
        families = family, preset.text_image_family if clip is None else text_image_family(clip)
        sources = diffusion or preset.diffusion, clip or preset.clip
        return cls(**_load(families, sources, device, dtype), config=config or preset.config)

    def __call__(self, image: ImageLike, labels: LabelsLike, **overrides: Any) -> Segmentation:
        """Segment one image.

        Args:
            image: a path, a PIL image, or a uint8 array (H, W, 3).
            labels: ``"cat, dog|puppy, grass"``, or a list of such labels; names joined by ``|``
                are synonyms, of which the best match counts.
            overrides: fields of :class:`NerveConfig` for this call.

        Returns:
            The segmentation at the image's resolution.

        Raises:
            ValueError, TypeError: labels, image or an override that cannot be used.
        """
        config = self.config.replace(**overrides)
        self._check_labels(labels, config)  # before the costly part
        return self.segment(self.encode(image, config=config), labels, config=config)

    @torch.no_grad()
    def encode(self, image: ImageLike, *, config: NerveConfig | None = None) -> ImageFeatures:
        """The part that does not depend on the words: patch embeddings and the affinity.

        Args:
            image: a path, a PIL image, or a uint8 array.
            config: None: the pipeline's own. With ``walk=False`` Stable Diffusion is not run.

        Returns:
            Features for any number of calls of :meth:`segment`.
        """
        config = config or self.config
        with phase(READ):
            image = load_image(image)
        self._check(config)  # before the costly part
        with phase(CLIP_IMAGE):
            (patches,) = self.text_image.embed_images([image], config)
        if not config.walk:
            return ImageFeatures(image, patches, config, made_by=self.text_image)
        with phase(DIFFUSION):
            (layers,) = self.attention([image], config)
        builder = AffinityBuilder(layers)
        features = ImageFeatures(image, patches, config, builder, builder.grid, self.text_image)
        features.affinity(config)
        return features

    @torch.no_grad()
    def segment(
        self, features: ImageFeatures, labels: LabelsLike, *, config: NerveConfig | None = None
    ) -> Segmentation:
        """Segment encoded features by words.

        Args:
            features: from :meth:`encode`.
            labels: as in :meth:`__call__`.
            config: None: the one the features were made with. It may differ in everything that
                comes after the two models: head weights, affinity, walk, seeds, prompts.

        Returns:
            The segmentation at the image's resolution.

        Raises:
            ValueError: unusable labels, or a config or other weights that need the image encoded anew.
        """
        config = config or features.config
        return self.segment_from(features, self.seeds(features, labels, config=config), config=config)

    @torch.no_grad()
    def seeds(self, features: ImageFeatures, labels: LabelsLike, *, config: NerveConfig | None = None) -> Seeds:
        """The part of :meth:`segment` that depends on the words, before any walk."""
        config = config or features.config
        self._check_config(features, config)
        features.check_source(self.text_image)
        label_set = self._check_labels(labels, config)
        with phase(CLIP_WORDS):
            texts = self.text_image.embed_names(label_set.flat_names, resolve_templates(config.templates))
        with phase(SEEDS):
            similarity = label_similarity(features.patches.values, texts, label_set.label_of_name)
            probabilities = seeds_from_similarity(
                similarity, mode=config.seed_mode, scale=config.seed_scale or self.text_image.logit_scale
            )
            require_finite(probabilities, SEEDS)
        return Seeds(label_set, probabilities, features.patches.grid)

    @torch.no_grad()
    def segment_from(self, features: ImageFeatures, seeds: Seeds, *, config: NerveConfig | None = None) -> Segmentation:
        """The part of :meth:`segment` that comes after the seeds: affinity, walk, labels of pixels."""
        config = config or features.config
        self._check_config(features, config)
        probabilities, grid = seeds.probabilities, seeds.grid
        if config.walk:
            affinity = features.affinity(config)
            assert features.grid is not None  # an affinity has been built, so there is a grid
            probabilities = resize_seeds(probabilities, grid, features.grid)
            grid = features.grid
            with phase(WALK):
                probabilities = require_finite(_walk(probabilities, affinity, config), WALK)
        planes = probabilities.T.reshape(-1, *grid)
        image, background = features.image, seeds.labels.background
        if config.refine_pixels is not None:
            with phase(REFINE):
                planes = require_finite(refine_pixels(planes, image, config), REFINE)
        with phase(PIXELS):
            label_map = best_labels(
                planes,
                (image.height, image.width),
                threshold=config.probability_threshold,
                background=background,
                backend=config.backend,
            )
        return Segmentation(
            image=image,
            labels=seeds.labels.shown,
            label_map=label_map.cpu(),
            token_probabilities=planes.cpu(),
            background=background,
        )

    def _check(self, config: NerveConfig) -> None:
        check_backend(config)
        self.text_image.check(config)
        if config.walk:
            self.attention.check(config)

    @staticmethod
    def _check_labels(labels: LabelsLike, config: NerveConfig) -> LabelSet:
        label_set = parse_labels(labels, config.background_words)
        refuse_a_single_label(label_set)
        return label_set

    @staticmethod
    def _check_config(features: ImageFeatures, config: NerveConfig) -> None:
        fields: Sequence[str] = CLIP_FIELDS + (DIFFUSION_FIELDS if config.walk else ())
        name = differing_field(features.config, config, tuple(fields))
        if name is not None:
            raise ValueError(
                f"config: {name} is {getattr(config, name)!r}, but the features were encoded with "
                f"{getattr(features.config, name)!r}; encode the image again with this config"
            )


def _load(
    families: Sequence[str],
    sources: Sequence[str | os.PathLike[str]],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> dict[str, Any]:
    """Both models, as the pipeline takes them.

    A family of models is imported when it is used, for it has libraries of its own, and after both folders were seen
    to be there: that takes seconds.
    """
    for argument, source in zip(("diffusion", "clip"), sources, strict=True):
        check_folder(source, argument=argument)
    models = []
    for family, source in zip(families, sources, strict=True):
        module, _, name = family.partition(":")
        loader = getattr(importlib.import_module(module), name)
        models.append(loader.from_pretrained(source, device=device, dtype=dtype))
    return dict(zip(("attention", "text_image"), models, strict=True))


def _walk(seeds: torch.Tensor, affinity: Affinity, config: NerveConfig) -> torch.Tensor:
    if config.limit_walk:
        limit = nk.random_walk_limit(seeds, affinity, alpha=config.alpha, backend=config.backend)
        assert isinstance(limit, torch.Tensor)  # a tuple only where the bound is asked for
        return limit
    return nk.random_walk(
        seeds, affinity, alpha=config.alpha, steps=config.steps, tol=config.tolerance, backend=config.backend
    )
