"""How a checkpoint wants its pixels: the mean and standard deviation of each channel."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from nerve_kernels.segmentation.loading import ModelLoadError, load_part


def pixel_statistics(source: str | os.PathLike[str], *, argument: str) -> tuple[list[float], list[float]]:
    """(mean, std) per channel, for pixels in [0, 1], from a checkpoint's ``preprocessor_config.json``.

    Raises:
        ModelLoadError: it is not there, or does not hold them.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    # Only its settings are wanted; the preprocessor itself would crop, and may need torchvision.
    preprocessor: dict[str, Any] = load_part(
        BaseImageProcessor.get_image_processor_dict, source, argument=argument, config="preprocessor_config.json"
    )[0]
    mean, std = (_three_numbers(preprocessor, name, argument) for name in ("image_mean", "image_std"))
    if not min(std) > 0:
        raise ModelLoadError(f"{argument}: preprocessor_config.json: image_std: expected numbers > 0, got {std}")
    return mean, std


def _three_numbers(preprocessor: Mapping[str, Any], name: str, argument: str) -> list[float]:
    values = preprocessor.get(name)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    ):
        raise ModelLoadError(
            f"{argument}: preprocessor_config.json: {name}: expected 3 finite numbers, got {values!r:.60}"
        )
    return [float(value) for value in values]
