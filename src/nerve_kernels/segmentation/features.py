"""What an image gives once and for all words: kept in memory, or in a safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nerve_kernels as nk
from nerve_kernels.affinity import Affinity

from .attention.affinity_building import AffinityBuilder
from .attention.source import CapturedLayer
from .config import AFFINITY_FIELDS, NerveConfig
from .output.files import write_atomic
from .text_image.source import PatchEmbeddings

FORMAT = "nerve_kernels.ImageFeatures/1"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """All that depends on the image and not on the words; made by ``NervePipeline.encode``.

    Args:
        image: upright RGB.
        patches: CLIP's patch embeddings.
        config: what they were made with.
        builder: makes affinities from Stable Diffusion's queries and keys; None where the walk
            is off or :meth:`without_layers` let go of them.
        grid: (H, W) of the tokens that the walk runs on; None where the walk is off.
    """

    image: Image.Image
    patches: PatchEmbeddings
    config: NerveConfig
    builder: AffinityBuilder | None = None
    grid: tuple[int, int] | None = None
    _affinities: dict[tuple[Any, ...], Affinity] = field(default_factory=dict, repr=False)  # where there is no builder
    _asked: dict[tuple[Any, ...], NerveConfig] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> tuple[CapturedLayer, ...]:
        """The captured queries and keys."""
        return () if self.builder is None else self.builder.layers

    def affinity(self, config: NerveConfig) -> Affinity:
        """The affinity for a config's head weights, window, cells and mix; what it is mixed from is kept.

        Raises:
            ValueError: it is not there and there are no queries and keys to build it from.
        """
        key = tuple(getattr(config, name) for name in AFFINITY_FIELDS)
        if self.builder is not None:
            self._asked[key] = config
            return self.builder.build(config)
        if key not in self._affinities:
            raise ValueError(
                "features: they hold no queries and keys to build this affinity from; "
                "encode the image again with walk=True and these settings"
            )
        return self._affinities[key]

    def without_layers(self) -> ImageFeatures:
        """The same features with the affinities asked for so far, without queries and keys."""
        return replace(self, builder=None, _affinities=self._asked_affinities())

    def _asked_affinities(self) -> dict[tuple[Any, ...], Affinity]:
        builder = self.builder
        if builder is None:
            return self._affinities
        return {key: builder.build(config) for key, config in self._asked.items()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write image, patch embeddings and the affinities asked for so far as one safetensors file.

        Queries and keys are left out: they are many times larger, and :meth:`affinity` has used
        them already. The file is written whole or not at all.

        Args:
            path: the file, usually called ``*.safetensors``.

        Returns:
            The path.

        Raises:
            OSError: where it cannot be written.
        """
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {
            "image": torch.from_numpy(np.array(self.image)),
            "patches": self.patches.values,
        }
        affinities = []
        for number, (key, affinity) in enumerate(self._asked_affinities().items()):
            parts, form = _take_apart(affinity)
            # safetensors refuses memory that is shared, as parts of affinities with different beta are
            tensors |= {f"affinity.{number}.{name}": part.clone() for name, part in parts.items()}
            affinities.append({"settings": dict(zip(AFFINITY_FIELDS, key, strict=True)), **form})
        description = {
            "config": json.loads(self.config.to_json()),
            "patch_grid": self.patches.grid,
            "grid": self.grid,
            "affinities": affinities,
        }
        metadata = {"format": FORMAT, "description": json.dumps(description)}
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return write_atomic(path, save(whole, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> ImageFeatures:
        """Read a file written by :meth:`save`.

        Args:
            path: the file.
            device: where the tensors go: that of the pipeline which will use them.

        Returns:
            Features without queries and keys.

        Raises:
            ValueError: not such a file.
            OSError: where it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                # Cloned into memory of torch's own alignment: on other memory a matrix product may round differently.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(f"path: {path} is no safetensors file ({error})") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"path: {path} holds the format {metadata.get('format')!r}, wanted {FORMAT!r}: a file that "
                "ImageFeatures.save has written"
            )
        description = json.loads(metadata["description"])
        affinities = {}
        for number, form in enumerate(description["affinities"]):
            config = NerveConfig.from_dict(_whole_config(description["config"], form["settings"]))
            key = tuple(getattr(config, name) for name in AFFINITY_FIELDS)
            affinities[key] = _put_together(tensors, f"affinity.{number}.", form)
        return cls(
            image=Image.fromarray(tensors["image" if "image" in tensors else "picture"].cpu().numpy()),
            patches=PatchEmbeddings(tensors["patches"], _pair(description["patch_grid"])),
            config=NerveConfig.from_dict(description["config"]),
            grid=None if description["grid"] is None else _pair(description["grid"]),
            _affinities=affinities,
        )


def _whole_config(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """So that the config's own reading turns JSON's lists into the tuples that keys are made of."""
    return {**config, **settings}


def _take_apart(affinity: Affinity) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an affinity, and the rest as what JSON can hold."""
    values, u, v, _, grid, window, cells, beta = affinity.operator_arguments()
    parts = {"values": values, "u": u, "v": v}
    form = {"grid": grid, "window": window, "cells": cells, "beta": beta}
    return {name: part for name, part in parts.items() if part is not None}, form


def _put_together(tensors: Mapping[str, torch.Tensor], prefix: str, form: dict[str, Any]) -> Affinity:
    values, u, v = (tensors.get(prefix + name) for name in ("values", "u", "v"))
    grid = _pair(form["grid"])
    local = None if values is None else nk.LocalAffinity(values, grid=grid, window=_pair(form["window"]))
    cells = _pair(form["cells"]) if v is None else None
    low_rank = None if u is None else nk.LowRankAffinity(u, v, grid=grid, cells=cells)
    if local is not None and low_rank is not None:
        return nk.mix(low_rank, local, beta=form["beta"])
    found = low_rank or local
    if found is None:
        raise ValueError(f"path: expected tensors {prefix}values or {prefix}u in the file, got neither")
    return found


def _pair(values: list[int]) -> tuple[int, int]:
    return values[0], values[1]
