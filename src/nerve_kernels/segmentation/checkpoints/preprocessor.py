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
    file = "preprocessor_config.json"
    preprocessor: dict[str, Any] = load_part(
        BaseImageProcessor.get_image_processor_dict, source, argument=argument, config=file
    )[0]
    try:
        return statistics_of(preprocessor, ("image_mean", "image_std"), file=file)
    except ValueError as error:
        raise ModelLoadError(f"{argument}: {error}") from error


def statistics_of(settings: Mapping[str, Any], names: tuple[str, str], *, file: str) -> tuple[list[float], list[float]]:
    """(mean, std) per channel from settings that a file holds under these names.

    Raises:
        ValueError: they are not there, or are none; names file and field.
    """
    mean, std = (_three_numbers(settings, name, file) for name in names)
    if not min(std) > 0:
        raise ValueError(f"{file}: {names[1]}: expected numbers > 0, got {std}")
    return mean, std


def _three_numbers(settings: Mapping[str, Any], name: str, file: str) -> list[float]:
    values = settings.get(name)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    ):
        raise ValueError(f"{file}: {name}: expected 3 finite numbers, got {values!r:.60}")
    return [float(value) for value in values]
