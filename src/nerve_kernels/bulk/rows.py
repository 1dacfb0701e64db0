"""A row of the result: what is kept of an image, in types that Parquet, pandas and pycocotools share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from nerve_kernels.segmentation.annotations.run_lengths import encode
from nerve_kernels.segmentation.phases import Phase, summed
from nerve_kernels.segmentation.result import Segmentation

RUN_LENGTHS = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
LABEL = pa.struct(
    [
        ("label", pa.string()),
        ("area", pa.int64()),
        ("mean_probability", pa.float32()),
        ("rle", RUN_LENGTHS),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("labels", pa.list_(LABEL)),
        ("config", pa.string()),
        ("weights", pa.string()),
        ("seconds", pa.map_(pa.string(), pa.float32())),
        ("error", pa.string()),
    ]
)

FEATURES_SCHEMA = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("id", "source", "height", "width")),
        ("file", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        *(SCHEMA.field(name) for name in ("config", "weights", "seconds", "error")),
    ]
)


def are_features(schema: pa.Schema) -> bool:
    """Whether rows say where features are, in place of masks."""
    return "sha256" in schema.names


def seconds_of(phases: Sequence[Phase]) -> list[tuple[str, float]]:
    """By phase."""
    return [(one.name, one.seconds) for one in summed(list(phases))]


def row_of(segmentation: Segmentation, phases: Sequence[Phase]) -> dict[str, Any]:
    """What a segmentation says: of each label that occurs its mask, area and mean probability inside."""
    said = {one["label"]: one for one in segmentation.summary()["labels"]}
    labels = [
        {
            "label": label,
            "area": said[label]["area_pixels"],
            "mean_probability": said[label]["mean_probability_inside"],
            "rle": encode(mask),
        }
        for label, mask in segmentation.masks().items()
    ]
    image = segmentation.image
    return {"height": image.height, "width": image.width, "labels": labels, "seconds": seconds_of(phases)}
