"""The class that Ray Data makes an actor of: one pipeline, a row for each image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerve_kernels.cli.memory import is_out_of_memory, let_go
from nerve_kernels.evaluation.run_folder import digest
from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.images import NotAnImageError, load_image, read_image_bytes
from nerve_kernels.segmentation.phases import recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.presets import DEFAULT_PRESET
from nerve_kernels.segmentation.text_image.prompts import LabelsLike, parse_labels, refuse_a_single_label

if TYPE_CHECKING:
    import pyarrow as pa


class Segmenter:
    """Segments batches of images; a class for ``ray.data.Dataset.map_batches``.

    An image that cannot be read or segmented is a row with its error. The models work on one image at a time, so that
    neither the size of a batch nor what else is in it changes a result.

    Args:
        labels: as :class:`~nerve_kernels.segmentation.pipeline.NervePipeline` takes them.
        preset: models and their settings by name.
        diffusion, clip: checkpoints in place of the preset's, as in ``NervePipeline.from_preset``; both: no preset.
        device: None: a GPU if there is one.
        dtype: None: as in these two.
        config: settings in place of the preset's.
        threads: of torch, on the CPU.
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

    def __init__(
        self,
        labels: LabelsLike,
        *,
        preset: str = DEFAULT_PRESET,
        diffusion: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        config: NerveConfig | None = None,
        threads: int | None = None,
        weights: str | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._pipeline = NervePipeline.from_names(
            preset, diffusion=diffusion, clip=clip, device=device, dtype=dtype, config=config
        )
        self._labels = labels
        refuse_a_single_label(parse_labels(labels, self._pipeline.config.background_words))
        pipeline = self._pipeline
        made_by = digest(pipeline.attention.fingerprint(), pipeline.text_image.fingerprint())
        if weights not in (None, made_by):
            raise ValueError(
                f"out: expected rows that these models made, with the digest {made_by}, got rows with {weights}; "
                "choose another destination"
            )
        self._digests = {"config": digest(repr(labels), pipeline.config.to_json()), "weights": made_by}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        """Segment a batch.

        Args:
            batch: columns of equal length. ``image``: uint8 arrays (H, W, 3) or the bytes of image files; where it is
                missing, ``source`` or ``path`` names the files. ``id``: None: the source. ``error``: a text where the
                image could not be read.

        Returns:
            A table as :data:`nerve_kernels.bulk.rows.SCHEMA` says, a row for each image in their order.
        """
        from .rows import row_of, table_of

        rows = []
        for number in range(len(next(iter(batch.values())))):
            one = {name: column[number] for name, column in batch.items()}
            source = one.get("source", one.get("path"))
            row: dict[str, Any] = {"id": one.get("id", source), "source": source, **self._digests}
            with recording_phases() as phases:
                error = one.get("error") or None
                try:
                    if error is None:
                        image: Any = one.get("image", source)
                        if isinstance(image, bytes):
                            image = read_image_bytes(image, str(source))
                        row |= row_of(self._pipeline(load_image(image), self._labels), phases)
                except (NotAnImageError, FileNotFoundError) as problem:
                    error = str(problem)
                except (OSError, ValueError, RuntimeError, MemoryError) as problem:
                    error = f"out of memory ({problem})" if is_out_of_memory(problem) else str(problem)
            if error is not None:
                let_go()
            rows.append({**row, "error": error})
        return table_of(rows)
