"""What the pipeline gives back."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .output.files import write_atomic
from .output.render import indexed_image, render_overlay
from .output.upsampling import upsample
from .phases import WRITE, phase

RESULT_SUFFIXES = (".png", ".json")
RESULT_ENDINGS = {"overlay": "_overlay.png", "labels": "_labels.png", "summary": ".json"}  # the summary last
RESULT_FORMATS = ("png", "json")
_SUMMARY = {"width", "height", "unlabelled_pixels", "labels"}


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label for each pixel of an image, and how probable each label is there.

    Args:
        image: the image, upright RGB.
        labels: shown names; ``background`` comes first where background words were given.
        label_map: (H, W) int64, an index into `labels`; -1 where nothing was probable enough
            and there is no background label.
        token_probabilities: (C, h, w) float32 on the token grid, or at the image's pixels where they were refined
            there; they sum to 1 over C.
        background: index of the background label, or None.
    """

    image: Image.Image
    labels: tuple[str, ...]
    label_map: torch.Tensor
    token_probabilities: torch.Tensor
    background: int | None = None

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """(C, H, W) float32 at the image's resolution, made at first use."""
        return upsample(self.token_probabilities, (self.image.height, self.image.width))

    def summary(self) -> dict[str, Any]:
        """Size and, for each label, area and mean probability, ready for JSON.

        Returns:
            ``width``, ``height``, ``unlabelled_pixels`` and ``labels``: for each its name, its
            ``area_pixels``, ``area_fraction``, ``mean_probability`` (over the whole image) and
            ``mean_probability_inside`` (over its own pixels; None where it has none).
        """
        pixels = self.label_map.numel()
        size = (self.image.height, self.image.width)
        rows = []
        for index, name in enumerate(self.labels):
            inside = self.label_map == index
            # One label at a time, so that many labels do not fill the memory.
            probability = upsample(self.token_probabilities[index : index + 1], size)[0]
            area = int(inside.sum())
            rows.append(
                {
                    "label": name,
                    "area_pixels": area,
                    "area_fraction": area / pixels,
                    "mean_probability": float(probability.double().mean()),
                    "mean_probability_inside": (float(probability[inside].double().mean()) if area else None),
                }
            )
        return {
            "width": self.image.width,
            "height": self.image.height,
            "unlabelled_pixels": int((self.label_map < 0).sum()),
            "labels": rows,
        }

    def overlay(self, *, side_by_side: bool = False) -> Image.Image:
        """The image with its labels coloured and named; see :func:`render_overlay`."""
        return render_overlay(
            self.image,
            self.label_map,
            self.labels,
            background=self.background,
            side_by_side=side_by_side,
        )

    def indexed(self) -> Image.Image:
        """Labels as palette indices; see :func:`indexed_image`."""
        return indexed_image(self.label_map, background=self.background, labels=len(self.labels))

    def masks(self) -> dict[str, np.ndarray]:
        """For each label that occurs where it is, bool (H, W); the background is where none of them is."""
        label_map = self.label_map.numpy()
        return {
            name: label_map == index
            for index, name in enumerate(self.labels)
            if index != self.background and (label_map == index).any()
        }

    @phase(WRITE)
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        side_by_side: bool = False,
        formats: Collection[str] = RESULT_FORMATS,
    ) -> dict[str, Path]:
        """Write overlay, labels and summary, each whole or not at all.

        Args:
            path: where to, without suffix: ``out/cat`` gives ``out/cat_overlay.png``,
                ``out/cat_labels.png`` and ``out/cat.json``. A suffix ``.png`` or ``.json`` is
                taken off first.
            side_by_side: show the image as it was beside the overlay.
            formats: ``"png"`` for overlay and labels, ``"json"`` for the summary.

        Returns:
            The paths by the names ``overlay``, ``labels`` and ``summary``.

        Raises:
            OSError: where the folder cannot be made or written to.
        """
        stem = Path(path)
        if stem.suffix.lower() in RESULT_SUFFIXES:
            stem = stem.with_suffix("")
        contents = {}
        if "png" in formats:
            contents["overlay"] = _png(self.overlay(side_by_side=side_by_side))
            contents["labels"] = _png(self.indexed())
        if "json" in formats:
            contents["summary"] = (json.dumps(self.summary(), indent=2, allow_nan=False) + "\n").encode()
        # The summary last: where it is, the others are too.
        return {
            name: write_atomic(stem.with_name(stem.name + RESULT_ENDINGS[name]), content)
            for name, content in contents.items()
        }


def is_own_summary(path: Path) -> bool:
    """Whether a file is a summary as :meth:`Segmentation.save` writes it."""
    try:
        summary = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(summary, dict) and summary.keys() == _SUMMARY


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
