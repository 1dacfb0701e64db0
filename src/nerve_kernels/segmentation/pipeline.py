"""The whole method: from an image and words to a label for each pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, overload

import torch

from .attention.affinity_building import AffinityBuilder
from .attention.source import AttentionSource
from .checkpoints.families import attention_family, load_models, text_image_family
from .config import CLIP_FIELDS, DIFFUSION_FIELDS, NerveConfig, check_backend, differing_field
from .features import ImageFeatures
from .finite import require_finite
from .images import ImageLike, load_image
from .loading import LoadedPart, preset_dtype, recording_parts
from .output.pixel_refinement import refine_pixels
from .output.upsampling import best_labels
from .phases import CLIP_IMAGE, CLIP_WORDS, DIFFUSION, PIXELS, READ, REFINE, SEEDS, WALK, phase
from .presets import DEFAULT_PRESET, find_preset
from .result import Segmentation
from .seeds import Seeds, label_similarity, resize_seeds, seeds_from_similarity, walk_seeds
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
        self.loaded: tuple[LoadedPart, ...] = ()  # what of checkpoints was read, where it was here
        self._check(self.config)

    @classmethod
    def from_pretrained(
        cls,
        *,
        diffusion: str | os.PathLike[str],
        clip: str | os.PathLike[str],
        autoencoder: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        config: NerveConfig | None = None,
    ) -> NervePipeline:
        """Load two checkpoints; only safetensors are read and no code from the hub is run.

        Args:
            diffusion: folder or hub id of what attention comes from: a Stable Diffusion, FLUX or PixArt checkpoint,
                or a vision transformer (DINOv2, DINOv3, ViT, DeiT).
            clip: folder or hub id of a CLIP checkpoint, or of SigLIP's or SigLIP 2's at a fixed resolution.
            autoencoder: in place of the diffusion checkpoint's own VAE, another of the same latent, such as
                ``"madebyollin/taesd"``. A hub id may have a revision behind it: ``"owner/name@commit"``.
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
        return cls._loaded(families, (diffusion, clip), device, dtype, autoencoder, config)

    @classmethod
    def from_preset(
        cls,
        name: str = DEFAULT_PRESET,
        *,
        diffusion: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] | None = None,
        autoencoder: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        config: NerveConfig | None = None,
    ) -> NervePipeline:
        """Load a named pair of checkpoints with its settings.

        Args:
            name: a key of ``presets.PRESETS``, such as ``"embedded"`` or ``"dinov2-clip-b16"``.
            diffusion: in place of the preset's checkpoint, another, as in :meth:`from_pretrained`.
            clip: likewise.
            autoencoder: likewise; a preset's own one goes with its own checkpoint.
            device: as in :meth:`from_pretrained`.
            dtype: as in :meth:`from_pretrained`; None is bfloat16 on a CPU that computes in it (AVX512_BF16, AMX),
                but for the embedded models, whose quality was measured in float32.
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
        if autoencoder is None and diffusion is None:
            autoencoder = preset.autoencoder
        if dtype is None and preset.bfloat16:
            dtype = preset_dtype(device)
        return cls._loaded(families, sources, device, dtype, autoencoder, config or preset.config)

    @classmethod
    def from_names(
        cls,
        preset: str,
        *,
        diffusion: str | os.PathLike[str] | None,
        clip: str | os.PathLike[str] | None,
        **options: Any,
    ) -> NervePipeline:
        """:meth:`from_pretrained` where both checkpoints are named, else :meth:`from_preset`: as commands have it."""
        if diffusion and clip:
            return cls.from_pretrained(diffusion=diffusion, clip=clip, **options)
        return cls.from_preset(preset, diffusion=diffusion, clip=clip, **options)

    @classmethod
    def _loaded(cls, *what: Any) -> NervePipeline:
        *models, config = what
        with recording_parts() as parts:
            made = cls(**load_models(*models), config=config)
        made.loaded = tuple(parts)
        return made

    @overload
    def __call__(self, image: ImageLike, labels: LabelsLike, **overrides: Any) -> Segmentation: ...

    @overload
    def __call__(self, image: list[ImageLike], labels: LabelsLike, **overrides: Any) -> list[Segmentation]: ...

    def __call__(
        self, image: ImageLike | list[ImageLike], labels: LabelsLike, **overrides: Any
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or several at once.

        Args:
            image: a path, a PIL image, or a uint8 array (H, W, 3); or a list of such, which go through the models
                together where they are of one size.
            labels: ``"cat, dog|puppy, grass"``, or a list of such labels; names joined by ``|``
                are synonyms, of which the best match counts.
            overrides: fields of :class:`NerveConfig` for this call.

        Returns:
            The segmentation at the image's resolution; for a list of images a list.

        Raises:
            ValueError, TypeError: labels, image or an override that cannot be used.
        """
        config = self.config.replace(**overrides)
        self._check_labels(labels, config)  # before the costly part
        if not isinstance(image, list):
            return self.segment(self.encode(image, config=config), labels, config=config)
        return [self.segment(one, labels, config=config) for one in self.encode_all(image, config=config)]

    def encode(self, image: ImageLike, *, config: NerveConfig | None = None) -> ImageFeatures:
        """The part that does not depend on the words: patch embeddings and the affinity.

        Args:
            image: a path, a PIL image, or a uint8 array.
            config: None: the pipeline's own. With ``walk=False`` Stable Diffusion is not run.

        Returns:
            Features for any number of calls of :meth:`segment`.
        """
        return self.encode_all([image], config=config)[0]

    @torch.no_grad()
    def encode_all(self, images: Sequence[ImageLike], *, config: NerveConfig | None = None) -> list[ImageFeatures]:
        """:meth:`encode` of several images; those of one size go through the models together."""
        config = config or self.config
        with phase(READ):
            loaded = [load_image(image) for image in images]
        self._check(config)  # before the costly part
        with phase(CLIP_IMAGE):
            patches = self.text_image.embed_images(loaded, config)
        if not config.walk:
            return [
                ImageFeatures(image, seen, config, made_by=self.text_image)
                for image, seen in zip(loaded, patches, strict=True)
            ]
        with phase(DIFFUSION):
            captured = self.attention(loaded, config)
        found = []
        for image, seen, layers in zip(loaded, patches, captured, strict=True):
            builder = AffinityBuilder(layers)
            found.append(ImageFeatures(image, seen, config, builder, builder.grid, self.text_image))
            found[-1].affinity(config)
        return found

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
                probabilities = require_finite(walk_seeds(probabilities, affinity, config), WALK)
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
