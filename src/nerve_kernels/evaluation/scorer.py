"""One image, every variant of the method: label maps and confusion matrices, features computed once and shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import nerve_kernels as nk
from nerve_kernels._operators.checks import check_choice, refusal
from nerve_kernels._peak_memory import can_measure
from nerve_kernels.segmentation.checkpoints.fingerprints import digest_of_weights
from nerve_kernels.segmentation.config import CLIP_FIELDS, DIFFUSION_FIELDS, NerveConfig, differing_field
from nerve_kernels.segmentation.features import ImageFeatures
from nerve_kernels.segmentation.phases import PIXELS, REFINE, WALK, recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.text_image.prompts import DEFAULT_BACKGROUND_WORDS, parse_labels
from nerve_kernels.segmentation.text_image.templates import resolve_templates

from .class_lists import IGNORED
from .file_states import FileState
from .labelled_images import LabelledImage, LabelledImages
from .metrics import boundary_matrix, confusion_matrix
from .run_folder import ImageRecord, digest

VOCABULARIES = ("dataset", "image")
MEASURED_IMAGES = 20  # looking at the memory takes time


class Cost(NamedTuple):
    """What one image took after its seeds and its affinity: seconds, and bytes at their highest where it is known."""

    seconds: float
    peak_bytes: int | None


def protocol_config(config: NerveConfig, *, has_background: bool) -> NerveConfig:
    """The one config of all data sets, as one of them can take it.

    Background words and the probability threshold say what is none of the classes; where every scored pixel is of
    some class there is nothing to say that about, and they are switched off.

    Args:
        config: for all data sets.
        has_background: whether this one has a background class.

    Returns:
        The config to score it with.

    Example:
        >>> protocol_config(NerveConfig(background_words="default"), has_background=False).background_words
        ()
    """
    return config if has_background else config.replace(background_words=(), probability_threshold=0.0)


class Scorer:
    """Scores images under several variants of the method.

    Variants that differ only in what comes after the two models share the features of an image. All names are
    embedded when the scorer is made, in one order, so that no result depends on which images came before.

    Args:
        pipeline: the two models.
        dataset: images with their truth.
        variants: a config for each variant's name.
        vocabulary: ``"dataset"``: each image is asked for every class; ``"image"``: for those in its truth (and
            the background), the task of one who knows what is there and wants to know where.
        boundary: also count the pixels near a boundary, for the Boundary IoU.

    Raises:
        ValueError: an unknown vocabulary, no variant, or a config that does not suit the models.
    """

    def __init__(
        self,
        pipeline: NervePipeline,
        dataset: LabelledImages[Any],
        variants: Mapping[str, NerveConfig],
        *,
        vocabulary: str = "dataset",
        boundary: bool = False,
    ) -> None:
        check_choice("vocabulary", vocabulary, VOCABULARIES)
        if not variants:
            raise ValueError(refusal("variants", "at least one", "none"))
        self.pipeline, self.dataset, self.vocabulary, self.boundary = pipeline, dataset, vocabulary, boundary
        self.costs: dict[str, list[Cost]] = {name: [] for name in variants}
        self.variants = {
            name: protocol_config(config, has_background=dataset.has_background) for name, config in variants.items()
        }
        self._groups = share_features(self.variants)
        for config in self.variants.values():
            words = config.background_words
            names = parse_labels(dataset.names, words).flat_names
            # of the usual words those are left out that are labels too: other words for other images
            names += DEFAULT_BACKGROUND_WORDS if words == "default" else ()
            pipeline.text_image.embed_names(names, resolve_templates(config.templates))

    def record(self, index: int, labelled: LabelledImage, files: tuple[FileState, ...] = ()) -> ImageRecord:
        """What an image counts under each variant, at its own resolution."""
        found: dict[str, torch.Tensor] = {}
        boundary: dict[str, torch.Tensor] = {}
        classes = len(self.dataset.classes)
        for base, names in self._groups:
            features = self.pipeline.encode(labelled.image, config=base)
            for name in names:
                with self._measuring(name):
                    prediction = self._label_map(features, labelled.mask, self.variants[name])
                found[name] = confusion_matrix(prediction, labelled.mask, classes=classes)
                if self.boundary:
                    boundary[name] = boundary_matrix(prediction, labelled.mask, classes=classes)
        in_order = [boundary[name] for name in self.variants] if self.boundary else None
        return ImageRecord.from_matrices(index, [found[name] for name in self.variants], files, in_order)

    @contextmanager
    def _measuring(self, variant: str) -> Iterator[None]:
        """Note what follows the seeds and the affinity, which variants share, for the first images."""
        measured, device = self.costs[variant], self.pipeline.text_image.device.type
        if len(self.variants) == 1 or len(measured) == MEASURED_IMAGES:
            yield
            return
        with recording_phases(device if can_measure(device) else None) as phases:
            yield
        own = [one for one in phases if one.name in (WALK, REFINE, PIXELS)]
        peaks = [one.peak_bytes for one in own if one.peak_bytes is not None]
        measured.append(Cost(sum(one.seconds for one in own), max(peaks, default=None)))

    def label_map(self, labelled: LabelledImage, variant: str) -> npt.NDArray[np.int64]:
        """(height, width): the class one variant gives each pixel."""
        config = self.variants[variant]
        return self._label_map(self.pipeline.encode(labelled.image, config=config), labelled.mask, config)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What a result depends on; runs in which it differs must not be mixed."""
        return {
            "nerve_kernels": nk.__version__,
            "dataset": self.dataset.name,
            "classes": digest(*("|".join(names) for names in self.dataset.names)),
            "images": digest(*self.dataset.identifiers),
            "vocabulary": self.vocabulary,
            "variants": {name: vars(config) for name, config in self.variants.items()},
            "models": {
                "attention": self.pipeline.attention.fingerprint(),
                "text_image": self.pipeline.text_image.fingerprint(),
            },
            "device": self.pipeline.text_image.device.type,
            # runs of earlier versions, which knew no boundaries, go on
            **({"boundary": True} if self.boundary else {}),
        }

    def digest_of_weights(self) -> str:
        """The digest of all weights together that earlier versions described a run by."""
        sources = (self.pipeline.attention, self.pipeline.text_image)
        return digest_of_weights(*(module for source in sources for module in getattr(source, "modules", ())))

    def _label_map(self, features: ImageFeatures, truth: npt.NDArray[Any], config: NerveConfig) -> npt.NDArray[Any]:
        asked = self._classes_to_ask(truth)
        if len(asked) < 2:  # nothing to choose between
            return np.full(truth.shape, asked[0] if asked.size else 0)
        result = self.pipeline.segment(features, [self.dataset.names[index] for index in asked], config=config)
        return asked[result.label_map.numpy()]

    def _classes_to_ask(self, truth: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if self.vocabulary == "dataset":
            return np.arange(len(self.dataset.names))
        there = set(np.unique(truth).tolist()) - {IGNORED}
        return np.array(sorted(there | ({0} if self.dataset.has_background else set())), dtype=np.int64)


def share_features(variants: Mapping[str, NerveConfig]) -> list[tuple[NerveConfig, list[str]]]:
    """Which variants can be made from the same features of an image.

    Args:
        variants: a config for each name.

    Returns:
        Groups: the config to encode with, and the names of its variants.

    Example:
        >>> base = NerveConfig()
        >>> variants = {"clip": base.replace(walk=False), "walk": base, "noisier": base.replace(timesteps=(300,))}
        >>> [names for _, names in share_features(variants)]
        [['walk', 'clip'], ['noisier']]
    """
    groups: list[tuple[NerveConfig, list[str]]] = []
    # those that walk first: features made without the walk serve nobody else
    for name, config in sorted(variants.items(), key=lambda item: not item[1].walk):
        fields = CLIP_FIELDS + (DIFFUSION_FIELDS if config.walk else ())
        for base, names in groups:
            if differing_field(base, config, fields) is None:
                names.append(name)
                break
        else:
            groups.append((config, [name]))
    return groups
