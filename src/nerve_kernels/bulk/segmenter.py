"""The class that Ray Data makes an actor of: one pipeline, a row for each image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from nerve_kernels._operators.checks import check_count
from nerve_kernels.cli.memory import is_out_of_memory, let_go
from nerve_kernels.evaluation.run_folder import digest
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.features import ImageFeatures
from nerve_kernels.segmentation.images import load_image, places_by_size, read_image_bytes
from nerve_kernels.segmentation.phases import Phase, recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.presets import DEFAULT_PRESET
from nerve_kernels.segmentation.text_image.prompts import LabelsLike, parse_labels, refuse_a_single_label

from .rows import SCHEMA, row_of

Encoded = tuple[ImageFeatures | str, list[Phase]]
"""Features, or what was wrong, with the time it took."""
EXPECTED = (OSError, ValueError, RuntimeError, MemoryError)  # whatever else is raised is a fault of this program


class ImageBatches:
    """Batches of images through the models, and a row for each: what is done with their features, subclasses say."""

    schema: pa.Schema

    def __init__(
        self,
        *,
        preset: str = DEFAULT_PRESET,
        diffusion: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] | None = None,
        autoencoder: str | os.PathLike[str] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        config: NerveConfig | None = None,
        threads: int | None = None,
        batch: int = 1,
        weights: str | None = None,
    ) -> None:
        self._batch = check_count("batch", batch, low=1)
        if threads is not None:
            torch.set_num_threads(threads)
        self._pipeline = NervePipeline.from_names(
            preset,
            diffusion=diffusion,
            clip=clip,
            autoencoder=autoencoder,
            device=device,
            dtype=dtype,
            config=config,
        )
        pipeline = self._pipeline
        made_by = digest(pipeline.attention.fingerprint(), pipeline.text_image.fingerprint())
        if weights not in (None, made_by):
            raise ValueError(
                f"out: expected rows that these models made, with the digest {made_by}, got rows with {weights}; "
                "choose another destination"
            )
        self._digests = {"weights": made_by}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        """Segment a batch.

        Args:
            batch: columns of equal length. ``image``: uint8 arrays (H, W, 3) or the bytes of image files; where it is
                missing, ``source`` or ``path`` names the files. ``id``: None: the source. ``error``: a text where the
                image could not be read.

        Returns:
            A table with `schema`, a row for each image in their order.
        """
        rows: list[dict[str, Any]] = []
        images: dict[int, Image.Image] = {}
        for number in range(len(next(iter(batch.values())))):
            one = {name: column[number] for name, column in batch.items()}
            source = one.get("source", one.get("path"))
            rows.append({"id": one.get("id", source), "source": source, "error": one.get("error") or None})
            if rows[-1]["error"] is None:
                try:
                    images[number] = _load(one.get("image", source), str(source))
                except EXPECTED as problem:
                    rows[-1]["error"] = error_text(problem)
        for group in places_by_size([image.size for image in images.values()]).values():
            numbers = [list(images)[place] for place in group]
            encoded = self._encode_all([images[one] for one in numbers])
            for number, (features, phases) in zip(numbers, encoded, strict=True):
                rows[number] |= self._row(rows[number], features, phases)
                if rows[number]["error"] is not None:
                    let_go()
        return pa.Table.from_pylist([row | self._digests for row in rows], schema=self.schema)

    def _encode_all(self, images: Sequence[Image.Image], at_once: int | None = None) -> Iterator[Encoded]:
        """Features of images of one size."""
        at_once = at_once or self._batch
        for first in range(0, len(images), at_once):
            few = images[first : first + at_once]
            encoded = self._encode(few)
            if encoded is None:  # here, where nothing holds the error's frames and their memory any more
                let_go()
                yield from self._encode_all(few, (len(few) + 1) // 2)
            else:
                yield from encoded

    def _encode(self, images: Sequence[Image.Image]) -> list[Encoded] | None:
        """Features of images, each with its share of the time, or what was wrong; None: fewer at once may do."""
        with recording_phases() as phases:
            try:
                features = self._pipeline.encode_all(images)
            except EXPECTED as problem:
                return None if len(images) > 1 else [(error_text(problem), [])]
        share = [replace(one, seconds=one.seconds / len(images)) for one in phases]
        return [(one, share) for one in features]

    def _row(self, row: dict[str, Any], features: ImageFeatures | str, phases: list[Phase]) -> dict[str, Any]:
        if isinstance(features, str):
            return {"error": features}
        with recording_phases() as own:
            try:
                return self._finish(row, features, phases, own)
            except EXPECTED as problem:
                return {"error": error_text(problem)}

    def _finish(
        self, row: dict[str, Any], features: ImageFeatures, phases: list[Phase], own: list[Phase]
    ) -> dict[str, Any]:
        """What a row says of an image; `own` phases are being recorded."""
        raise NotImplementedError


class Segmenter(ImageBatches):
    """Segments batches of images; a class for ``ray.data.Dataset.map_batches``.

    An image that cannot be read or segmented is a row with its error. By default the models work on one image at a
    time, so that neither the size of a batch nor what else is in it changes a result; with `batch` sums are rounded
    otherwise, as in ``nerve-segment --batch``.

    Args:
        labels: as :class:`~nerve_kernels.segmentation.pipeline.NervePipeline` takes them.
        preset: models and their settings by name.
        diffusion, clip, autoencoder: in place of the preset's checkpoints, as in ``NervePipeline.from_preset``; the
            first two: no preset.
        device: None: a GPU if there is one.
        dtype: None: as in these two.
        config: settings in place of the preset's.
        threads: of torch, on the CPU.
        batch: images of one size that go through the models at once; where memory runs out, half as many, down to one.
        weights: the digest that the models are expected to have; None: any.

    Raises:
        ValueError: unusable labels or settings, or models with another digest than `weights`.
        ModelLoadError: a checkpoint cannot be loaded.

    Example:
        >>> segmenter = Segmenter("cat, dog|puppy", device="cpu")
        >>> rows = segmenter({"path": np.array(["absent.png"])})
        >>> rows.to_pylist()[0]["error"]
        'absent.png: no such file'
    """

    schema = SCHEMA

    def __init__(self, labels: LabelsLike, **models: Any) -> None:
        super().__init__(**models)
        self._labels = labels
        refuse_a_single_label(parse_labels(labels, self._pipeline.config.background_words))
        self._digests["config"] = digest(repr(labels), self._pipeline.config.to_json())

    def _finish(
        self, row: dict[str, Any], features: ImageFeatures, phases: list[Phase], own: list[Phase]
    ) -> dict[str, Any]:
        segmentation = self._pipeline.segment(features, self._labels)
        return row_of(segmentation, phases + own)


def _load(image: Any, source: str) -> Image.Image:
    return read_image_bytes(image, source) if isinstance(image, bytes) else load_image(image)


def error_text(problem: BaseException) -> str:
    """What a row says."""
    return f"out of memory ({problem})" if is_out_of_memory(problem) else str(problem)
