"""The file that features are kept in: what is read from it is what was written, and fits together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import nerve_kernels as nk
from nerve_kernels._operators.checks import check_cells, check_number, check_window
from nerve_kernels.layers_on_grid import window_on_layer
from nerve_kernels.statistics import AttentionStatistics, as_list

from .config import NerveConfig

FORMAT = "nerve_kernels.ImageFeatures/2"
# The first version had no checksum; its files are read all the same.
WITHOUT_CHECKSUM = "nerve_kernels.ImageFeatures/1"

# How far a row of S may be from 1: what its sum loses in float32, and what rounding each value to its storage does.
ROW_TOLERANCE = 1e-4
# Patch embeddings are of unit length, or means of such.
MAX_PATCH_LENGTH = 1.01


def pack(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file of tensors and what describes them, with a checksum over both."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(description, allow_nan=False)
    return save(whole, {"format": FORMAT, "description": text, "sha256": _checksum(whole, text)})


def unpack(path: str | os.PathLike[str], device: str | torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the description in a file that :func:`pack` made.

    Raises:
        ValueError: Not such a file, or its bytes have changed since.
        OSError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():  # reading from a pipe may never end
        raise FileNotFoundError(f"path: {path} is no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into memory of torch's own alignment: on other memory a matrix product may round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:  # the last three: dtypes torch does not have
        raise ValueError(f"path: {path} is no safetensors file ({error})") from error
    if metadata.get("format") not in (FORMAT, WITHOUT_CHECKSUM):
        raise ValueError(
            f"path: {path} holds the format {metadata.get('format')!r}, wanted {FORMAT!r}: a file that "
            "ImageFeatures.save has written"
        )
    text = metadata.get("description", "")
    if metadata["format"] == FORMAT and _checksum(tensors, text) != metadata.get("sha256"):
        raise ValueError("its checksum differs")
    description = json.loads(text)
    if not isinstance(description, dict):
        raise TypeError(f"description: expected an object, got {type(description).__name__}")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, description


def check_image(pixels: torch.Tensor) -> None:
    """Refuse what is no upright RGB image of 8 bits."""
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"image: expected uint8 (H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}")


def check_patches(values: torch.Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Refuse patch embeddings that do not fit their grid or the image, or that are no embeddings of CLIP's."""
    if not values.is_floating_point() or values.dim() != 2 or values.shape[0] != grid[0] * grid[1]:
        raise ValueError(
            f"patches: expected floats ({grid[0] * grid[1]}, D) for patch_grid {grid}, got {values.dtype} "
            f"{tuple(values.shape)}"
        )
    if not values.shape[1] or not bool((values.float().norm(dim=1) <= MAX_PATCH_LENGTH).all()):  # NaN is not <= either
        raise ValueError("patches: expected vectors of at most unit length, got longer ones or none")
    check_grid("patch_grid", grid, image_size)


def check_grid(name: str, grid: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Refuse a grid whose longer side lies along the image's shorter one: its sides are swapped."""
    if (image_size[0] - image_size[1]) * (grid[0] - grid[1]) < 0 or (
        image_size[0] == image_size[1] and grid[0] != grid[1]
    ):
        raise ValueError(f"{name}: expected rows and columns as in an image of {image_size} pixels, got {grid}")


def affinity_of(
    tensors: Mapping[str, torch.Tensor],
    prefix: str,
    form: Mapping[str, Any],
    grid: tuple[int, int],
    config: NerveConfig,
) -> nk.LocalAffinity | nk.LowRankAffinity | nk.MixedAffinity:
    """An affinity from its parts, each of them row-stochastic.

    Args:
        tensors: All of the file.
        prefix: Of the names of this affinity's.
        form: Its grid, window, cells and beta.
        grid: That of the features.
        config: The settings it was made with.

    Raises:
        KeyError, TypeError, ValueError: Parts that are missing or do not fit together.
    """
    values, u, v = (tensors.get(prefix + name) for name in ("values", "u", "v"))
    if pair("grid", form["grid"]) != grid:
        raise ValueError(f"grid: expected {grid} as the features have, got {form['grid']}")
    if form["beta"] != config.beta or (values is None) != (config.beta == 1.0) or (u is None) != (config.beta == 0.0):
        raise ValueError(f"{prefix}values, {prefix}u, beta: expected the parts for beta={config.beta}")
    local = low_rank = None
    if values is not None:
        local = nk.LocalAffinity(values, grid=grid, window=pair("window", form["window"]))
        _check_rows(prefix + "values", local, values)
    if u is not None:
        cells = pair("cells", form["cells"]) if v is None else None
        low_rank = nk.LowRankAffinity(u, v, grid=grid, cells=cells)
        _check_rows(prefix + "u", low_rank, u, *(() if v is None else (v,)))
    if local is not None and low_rank is not None:
        return nk.mix(low_rank, local, beta=config.beta)
    whole = low_rank if local is None else local
    assert whole is not None  # beta is 0 or 1, so one of them is there
    return whole


STATISTICS = ("entropy", "lse", "local", "pooled")


def statistics_tensors(statistics: AttentionStatistics) -> dict[str, torch.Tensor]:
    """The tensors of all layers by name."""
    parts = {name: as_list(getattr(statistics, name)) for name in STATISTICS}
    return {f"statistics.{at}.{name}": part for name, layers in parts.items() for at, part in enumerate(layers)}


def statistics_form(statistics: AttentionStatistics, sharpness: float) -> dict[str, Any]:
    """The rest, as what JSON can hold."""
    form = {name: getattr(statistics, name) for name in ("window", "cells", "grids", "windows")}
    return {**form, "global_sharpness": sharpness}


def statistics_of(
    tensors: Mapping[str, torch.Tensor], form: Mapping[str, Any], grid: tuple[int, int]
) -> tuple[AttentionStatistics, float]:
    """Statistics and the sharpness of their cells, from what the two functions above made.

    Raises:
        KeyError, TypeError, ValueError: Parts that are missing or do not fit together.
    """
    window, cells = pair("window", form["window"]), pair("cells", form["cells"])
    grids, windows = (tuple(pair(name, one) for one in form[name]) for name in ("grids", "windows"))
    sharpness = check_number("global_sharpness", form["global_sharpness"], low=0, wanted="> 0", low_open=True)
    if not grids or len(windows) != len(grids):
        raise ValueError(f"windows: expected one for each of the {len(grids)} layers, got {len(windows)}")
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in STATISTICS}
    for at, (layer_grid, layer_window) in enumerate(zip(grids, windows, strict=True)):
        if any(side > limit for side, limit in zip(layer_grid, grid, strict=True)):
            raise ValueError(f"grids: expected none finer than {grid}, got {layer_grid}")
        if layer_window != window_on_layer(layer_grid, grid, check_window(window, grid)):
            raise ValueError(f"windows: expected the reach of {window} on {grid}, got {layer_window} on {layer_grid}")
        check_cells(cells, layer_grid)
        rows = 1, tensors[f"statistics.{at}.entropy"].shape[1], layer_grid[0] * layer_grid[1]
        shapes = rows, rows, (*rows, layer_window[0] * layer_window[1]), (*rows, cells[0] * cells[1])
        for name, shape in zip(STATISTICS, shapes, strict=True):
            part = tensors[f"statistics.{at}.{name}"]
            if not part.is_floating_point() or part.shape != shape or not bool(part.isfinite().all()):
                raise ValueError(f"statistics.{at}.{name}: expected finite floats {shape}, got {tuple(part.shape)}")
            parts[name].append(part)
        local, pooled = parts["local"][-1].float(), parts["pooled"][-1].float()
        sums, tolerance = pooled.sum(-1), ROW_TOLERANCE + 4 * torch.finfo(parts["pooled"][-1].dtype).eps
        if bool((local < 0).any()) or bool((pooled < 0).any()) or bool((local.sum(-1) > 1 + tolerance).any()):
            raise ValueError(f"statistics.{at}: expected shares of attention, got others")
        if not bool(((sums - 1).abs() <= tolerance).all()):
            raise ValueError(f"statistics.{at}.pooled: expected rows that sum to 1, got others")
    return AttentionStatistics(**parts, grid=grid, window=window, cells=cells, grids=grids, windows=windows), sharpness


def pair(name: str, values: Any) -> tuple[int, int]:
    """Two counts, as JSON holds them."""
    if not isinstance(values, list) or len(values) != 2:
        raise ValueError(f"{name}: expected two counts, got {values!r:.60}")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise ValueError(f"{name}: expected two counts, got {values!r:.60}")
    return values[0], values[1]


def _check_rows(name: str, affinity: nk.LocalAffinity | nk.LowRankAffinity, *parts: torch.Tensor) -> None:
    if affinity.shape[0] != 1:
        raise ValueError(f"{name}: expected a batch of 1, got {affinity.shape[0]}")
    if not all(bool(part.amin() >= 0) for part in parts):  # NaN is not >= 0 either
        raise ValueError(f"{name}: expected no value below 0, got one or NaN")
    if isinstance(affinity, nk.LocalAffinity) or affinity.v is None:
        sums = parts[0].sum(-1, dtype=torch.float32)  # of a window, or of cells that share what is theirs evenly
    else:
        sums = affinity @ torch.ones(1, affinity.shape[1], 1, device=affinity.device)
    tolerance = ROW_TOLERANCE + 4 * max(torch.finfo(part.dtype).eps for part in parts)
    if not bool(((sums - 1).abs() <= tolerance).all()):
        raise ValueError(f"{name}: expected rows that sum to 1, got sums of {sums.min():.4g} to {sums.max():.4g}")


def _checksum(tensors: Mapping[str, torch.Tensor], description: str) -> str:
    sha = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
