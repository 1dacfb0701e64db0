"""Features of images, kept for words that come later; and the words asked of them."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs

from nerve_kernels._operators.checks import refusal
from nerve_kernels.cli.memory import let_go
from nerve_kernels.evaluation.run_folder import digest
from nerve_kernels.segmentation.checkpoints.families import load_model, text_image_family
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.features import ImageFeatures
from nerve_kernels.segmentation.loading import preset_dtype
from nerve_kernels.segmentation.phases import READ, WRITE, Phase, phase, recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.presets import PRESETS
from nerve_kernels.segmentation.text_image.prompts import LabelsLike

from .destination import Destination
from .packed import Entry
from .rows import FEATURES_SCHEMA, SCHEMA, are_features, row_of, seconds_of
from .segmenter import EXPECTED, ImageBatches, error_text

FOLDER = "features"


class Encoder(ImageBatches):
    """Saves the features of images as ``ImageFeatures`` files; a row says where, how large and with which digest.

    Args:
        out: the destination of the run; files go to a folder ``features`` in it, named after a digest of the id, so
            that an image that is encoded again has the same.
        models: as :class:`~.segmenter.Segmenter` takes them.
    """

    schema = FEATURES_SCHEMA

    def __init__(self, out: str, **models: Any) -> None:
        super().__init__(**models)
        self._destination = Destination(out)
        self._digests["config"] = digest(self._pipeline.config.to_json())

    def _finish(
        self, row: dict[str, Any], features: ImageFeatures, phases: list[Phase], own: list[Phase]
    ) -> dict[str, Any]:
        with phase(WRITE):
            content = features.to_bytes()
            name = hashlib.sha256(str(row["id"]).encode()).hexdigest()[:32]
            file = f"{FOLDER}/{name[:2]}/{name[2:]}.safetensors"
            filesystem, path = self._destination.filesystem, f"{self._destination.path}/{file}"
            filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            part = f"{path}.{uuid.uuid4().hex}.part"
            with filesystem.open_output_stream(part) as stream:
                stream.write(content)
            filesystem.move(part, path)
        return {
            "height": features.image.height,
            "width": features.image.width,
            "file": file,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "seconds": seconds_of(phases + own),
        }


class Querier:
    """Segments stored features by words: a row for each, as the segmenter would give it.

    Args:
        labels: the words.
        features: the destination of the run that stored them.
        preset, clip: of its models those that embed words; the other is not loaded.
        weights: of rows that are there already; not needed, for the features' own are what counts.
        device, dtype, config, threads: as :class:`~.segmenter.Segmenter` takes them.
    """

    def __init__(
        self,
        labels: LabelsLike,
        *,
        features: str,
        config: NerveConfig,
        preset: str | None = None,
        clip: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        weights: str | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = None if preset is None else PRESETS[preset]
        if clip is None:
            assert chosen is not None  # a run that names neither is refused
            family, source = chosen.text_image_family, chosen.clip
        else:
            family, source = text_image_family(clip), clip
        if dtype is None and chosen is not None and chosen.bfloat16:
            dtype = preset_dtype(device)  # type: ignore[assignment]
        text_image = load_model(family, source, device=device, dtype=dtype)
        self._pipeline = NervePipeline(attention=_NoAttention(), text_image=text_image, config=config)
        self._labels, self._destination = labels, Destination(features)
        self._made_by: Any = None
        made_by = self._destination.weights()
        self._digests = {"config": digest(repr(labels), config.to_json()), "weights": made_by}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        """Rows of entries, whose files are features."""
        rows = []
        for number in range(len(batch["id"])):
            one = {name: batch[name][number] for name in ("id", "source", "file", "error")}
            row: dict[str, Any] = {"id": one["id"], "source": one["source"], "error": one["error"], **self._digests}
            if one["error"] is None:
                with recording_phases() as phases:
                    try:
                        with phase(READ):
                            features = self._checked(self._load(str(one["file"])))
                        row |= row_of(
                            self._pipeline.segment(features, self._labels, config=self._pipeline.config), phases
                        )
                    except EXPECTED as problem:
                        row["error"] = error_text(problem)
                if row["error"] is not None:
                    let_go()
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _checked(self, features: ImageFeatures) -> ImageFeatures:
        """Made with these weights; their fingerprint is compared when it changes, for it takes as long as the words."""
        text_image = self._pipeline.text_image
        if features.made_by is None or features.made_by != self._made_by:
            features.check_source(text_image)
            self._made_by = features.made_by
        return replace(features, made_by=text_image)

    def _load(self, file: str) -> ImageFeatures:
        path, device = f"{self._destination.path}/{file}", self._pipeline.text_image.device
        if isinstance(self._destination.filesystem, fs.LocalFileSystem):
            return ImageFeatures.load(path, device=device)
        with tempfile.TemporaryDirectory() as folder:  # safetensors reads files
            local = Path(folder) / Path(file).name
            with self._destination.filesystem.open_input_file(path) as stream:
                local.write_bytes(stream.read())
            return ImageFeatures.load(local, device=device)


def stored_features(destination: Destination) -> Iterator[Entry]:
    """An entry for each row of a run that stored features, those with errors included.

    Raises:
        ValueError: no such run.
    """
    table = destination.table()
    if not are_features(table.schema):
        got = "rows of masks" if table.schema.names else "none"
        raise ValueError(refusal("FEATURES", "rows that nerve-bulk --features made", f"{got} in {destination.place}"))
    for batch in table.to_batches(columns=["id", "source", "file", "error"]):
        for row in batch.to_pylist():
            yield Entry(row["id"], row["source"], row["file"], error=row["error"])


class _NoAttention:
    """Stands where the model was that made the affinities, which are in the features."""

    layers = ()

    def check(self, config: NerveConfig) -> None:
        """Nothing is asked of it."""

    def fingerprint(self) -> str:
        return ""

    def __call__(self, images: Any, config: NerveConfig) -> Any:
        raise NotImplementedError("features are read here, not made")
