"""Rows as files for annotation tools, one row after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nerve_kernels.segmentation.annotations.annotated_image import AnnotatedImage
from nerve_kernels.segmentation.annotations.formats import Annotations
from nerve_kernels.segmentation.annotations.run_lengths import decode

from .destination import Destination
from .rows import are_features

COLUMNS = ["source", "height", "width", "labels", "error"]


def export(destination: Destination, folder: Path, formats: Sequence[str]) -> int:
    """Write the masks of every row that has no error.

    Args:
        destination: of a run.
        folder: where the files go.
        formats: some of ``nerve_kernels.segmentation.annotations.formats.FORMATS``.

    Returns:
        How many images were written.

    Raises:
        ValueError: there are no rows, or two images lead to the same file.
    """
    if are_features(destination.table().schema):
        raise ValueError(f"RUN: expected masks, got features in {destination.place}; ask nerve-bulk query for masks")
    labels: dict[str, None] = {}
    root: str | None = None
    for row in _rows(destination, ["source", "labels", "error"]):
        labels.update(dict.fromkeys(one["label"] for one in row["labels"]))
        above = str(PurePosixPath(row["source"]).parent)
        root = above if root is None else os.path.commonpath([root, above])
    if root is None:
        raise ValueError(f"RUN: expected rows of nerve-bulk, got none in {destination.place}")
    annotations = Annotations(formats, folder, sorted(labels))
    count = 0
    with annotations.closing():
        for row in _rows(destination, COLUMNS):
            name = PurePosixPath(row["source"]).relative_to(root).as_posix()
            masks = {one["label"]: decode(one["rle"]) for one in row["labels"]}
            there = [
                path for path in annotations.paths([name]) if path.exists() and path.stem == PurePosixPath(name).stem
            ]
            if there:
                raise ValueError(f"--format: two images would go to {there[0]}; export them from two runs")
            annotations.add_masks(AnnotatedImage(row["source"], name, row["height"], row["width"], masks))
            count += 1
    return count


def _rows(destination: Destination, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in destination.table().to_batches(columns=columns, batch_size=256):
        yield from (row for row in batch.to_pylist() if row["error"] is None)
