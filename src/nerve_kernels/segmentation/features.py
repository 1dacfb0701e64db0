"""What an image gives once and for all words: kept in memory, or in a safetensors file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nerve_kernels._operators.checks import refusal
from nerve_kernels.affinity import Affinity
from nerve_kernels.statistics import AttentionStatistics

from .attention.affinity_building import AffinityBuilder, KeptAffinityBuilder
from .attention.source import CapturedLayer
from .config import AFFINITY_FIELDS, NerveConfig
from .feature_file import (
    affinity_of,
    check_grid,
    check_image,
    check_patches,
    pack,
    pair,
    statistics_form,
    statistics_of,
    statistics_tensors,
    unpack,
)
from .output.files import write_atomic
from .text_image.source import PatchEmbeddings, TextImageSource


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """All that depends on the image and not on the words; made by ``NervePipeline.encode``.

    Args:
        image: upright RGB.
        patches: CLIP's patch embeddings.
        config: what they were made with.
        builder: makes affinities from the attention's queries and keys, or from statistics of them that a file
            holds; None where the walk is off or :meth:`without_layers` let go of them.
        grid: (H, W) of the tokens that the walk runs on; None where the walk is off.
        made_by: what embedded the patches, and alone embeds names that can be compared with them: the model, or its
            fingerprint and dtype from a file; None for files of earlier versions, which do not say.
    """

    image: Image.Image
    patches: PatchEmbeddings
    config: NerveConfig
    builder: AffinityBuilder | None = None
    grid: tuple[int, int] | None = None
    made_by: TextImageSource | Mapping[str, str] | None = field(default=None, repr=False)
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
        if key in self._affinities:
            return self._affinities[key]
        if self.builder is None:
            raise ValueError(
                "features: they hold no queries and keys to build this affinity from; "
                "encode the image again with walk=True and these settings"
            )
        self._asked[key] = config
        return self.builder.build(config)

    def check_source(self, source: TextImageSource) -> None:
        """Refuse a model whose names cannot be compared with these patches, which were made with other weights.

        Weights in another dtype have other bits, so that there is no telling: that is a warning.

        Raises:
            ValueError: with both fingerprints.
        """
        if self.made_by is None or self.made_by is source:
            return
        made, here = _identity(self.made_by), _identity(source)
        if made == here:
            return
        told = f"fingerprint {made['fingerprint']} in {made['dtype']}, got {here['fingerprint']} in {here['dtype']}"
        if made["dtype"] == here["dtype"]:
            raise ValueError(
                f"features: expected the text and image model that made their patches, {told}; encode the image again "
                "with this model"
            )
        warnings.warn(f"features: made in another dtype, so the weights cannot be compared: {told}", stacklevel=3)

    def without_layers(self) -> ImageFeatures:
        """The same features with the affinities asked for so far, without queries and keys."""
        return replace(self, builder=None, _affinities=self._asked_affinities())

    def _asked_affinities(self) -> dict[tuple[Any, ...], Affinity]:
        builder = self.builder
        if builder is None:
            return self._affinities
        return {**self._affinities, **{key: builder.build(config) for key, config in list(self._asked.items())}}

    def save(self, path: str | os.PathLike[str], *, statistics: bool = False) -> Path:
        """Write image, patch embeddings and the affinities asked for so far as one safetensors file.

        Queries and keys are left out: they are many times larger, and :meth:`affinity` has used
        them already. The file is written whole or not at all.

        Args:
            path: the file, usually called ``*.safetensors``.
            statistics: also write what every head gives to the config's window and cells, so that other head weights
                (but by information), temperatures, ``keep`` and β remain possible: 40 MB for a layer of 8 heads on 64²
                tokens, window 7 and 16² cells, in float32.

        Returns:
            The path.

        Raises:
            ValueError: statistics that are asked for and are not there, or larger than
                ``NERVE_KERNELS_STATISTICS_MEMORY`` allows.
            OSError: where it cannot be written.
        """
        return write_atomic(path, self.to_bytes(statistics=statistics))

    def to_bytes(self, *, statistics: bool = False) -> bytes:
        """What :meth:`save` writes."""
        kept = self._statistics() if statistics else None
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
        if kept is not None:
            tensors |= statistics_tensors(kept)
        description = {
            "config": json.loads(self.config.to_json()),
            "patch_grid": self.patches.grid,
            "grid": self.grid,
            "affinities": affinities,
            "made_by": None if self.made_by is None else _identity(self.made_by),
            "statistics": None if kept is None else statistics_form(kept, self.config.global_sharpness),
        }
        return pack(tensors, description)

    def _statistics(self) -> AttentionStatistics:
        found = None if self.builder is None else self.builder.statistics(self.config)
        if found is None:
            wanted = "features with queries and keys, whose statistics NERVE_KERNELS_STATISTICS_MEMORY has room for"
            raise ValueError(refusal("statistics", wanted, "others"))
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> ImageFeatures:
        """Read a file written by :meth:`save`.

        Args:
            path: the file.
            device: where the tensors go: that of the pipeline which will use them.

        Returns:
            Features without queries and keys; with their statistics where those were saved.

        Raises:
            ValueError: not such a file, or one whose parts are missing, damaged or do not fit together.
            OSError: where it cannot be read.
        """
        try:
            return cls._from_parts(*unpack(path, device))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, ValueError) and str(error).startswith("path: "):
                raise
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"path: {path} is damaged, or was not written by ImageFeatures.save ({reason}); encode the image "
                "again and save it"
            ) from error

    @classmethod
    def _from_parts(cls, tensors: Mapping[str, torch.Tensor], description: dict[str, Any]) -> ImageFeatures:
        config = NerveConfig.from_dict(description["config"])
        # the first version called the image a picture
        pixels, patches = tensors["picture" if "picture" in tensors else "image"], tensors["patches"]
        check_image(pixels)
        size = (pixels.shape[0], pixels.shape[1])
        patch_grid = pair("patch_grid", description["patch_grid"])
        check_patches(patches, patch_grid, size)
        grid = None if description["grid"] is None else pair("grid", description["grid"])
        if grid is not None:
            check_grid("grid", grid, size)
        elif config.walk:
            raise ValueError("grid: expected that of the walk, got none")
        affinities: dict[tuple[Any, ...], Affinity] = {}
        for number, form in enumerate(description["affinities"]):
            if grid is None:
                raise ValueError("grid: expected that of the affinities, got none")
            # the config's own reading turns JSON's lists into the tuples that keys are made of
            made_with = NerveConfig.from_dict({**description["config"], **form["settings"]})
            key = tuple(getattr(made_with, name) for name in AFFINITY_FIELDS)
            affinities[key] = affinity_of(tensors, f"affinity.{number}.", form, grid, made_with)
        builder = None
        if description.get("statistics") is not None:
            if grid is None:
                raise ValueError("grid: expected that of the statistics, got none")
            builder = KeptAffinityBuilder(*statistics_of(tensors, description["statistics"], grid))
        return cls(
            image=Image.fromarray(pixels.cpu().numpy()),
            patches=PatchEmbeddings(patches, patch_grid),
            config=config,
            builder=builder,
            grid=grid,
            made_by=None if description.get("made_by") is None else _identity(description["made_by"]),
            _affinities=affinities,
        )


def _identity(made_by: TextImageSource | Mapping[str, str]) -> Mapping[str, str]:
    if isinstance(made_by, Mapping):
        return {name: str(made_by[name]) for name in ("fingerprint", "dtype")}
    return {"fingerprint": made_by.fingerprint(), "dtype": str(made_by.dtype).removeprefix("torch.")}


def _take_apart(affinity: Affinity) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an affinity, and the rest as what JSON can hold."""
    arguments = affinity.operator_arguments()
    parts = {"values": arguments.values, "u": arguments.u, "v": arguments.v}
    form = {name: getattr(arguments, name) for name in ("grid", "window", "cells", "beta")}
    return {name: part for name, part in parts.items() if part is not None}, form
