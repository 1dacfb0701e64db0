"""Which family of models a checkpoint is of, from what its own files say; and loading it as such."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.loading import check_folder, is_local
from nerve_kernels.segmentation.presets import (
    CLIP,
    DIFFUSION_TRANSFORMER,
    OPEN_CLIP,
    SIGLIP,
    STABLE_DIFFUSION,
    VISION_TRANSFORMER,
)

from . import hub
from .open_clip import CONFIG as OPEN_CLIP_CONFIG


def attention_family(source: str | os.PathLike[str]) -> str:
    """Where the class is that loads a checkpoint for its attention, as ``"module:class"``.

    A checkpoint with a ``model_index.json`` has several parts, of which a ``transformer`` or Stable Diffusion's UNet
    attends; one with a ``config.json`` of its own that names a ``model_type`` is a transformer by itself. What cannot
    be read is left to Stable Diffusion's loader to refuse.
    """
    index = _read(source, "model_index.json")
    if index is not None:
        return DIFFUSION_TRANSFORMER if "transformer" in index else STABLE_DIFFUSION
    return STABLE_DIFFUSION if _model_type(source) is None else VISION_TRANSFORMER


def text_image_family(source: str | os.PathLike[str]) -> str:
    """Where the class is that loads a checkpoint for its patches and words.

    One that open_clip can read is taken as such where transformers could not, which may find a config of its own
    there, with pickled weights or none. What is neither that nor SigLIP is taken for CLIP.
    """
    kind = _model_type(source)
    if kind == "siglip":
        return SIGLIP
    if _find(source, OPEN_CLIP_CONFIG) is None:
        return CLIP
    readable = kind is not None and any(_find(source, f"model.safetensors{more}") for more in ("", ".index.json"))
    return CLIP if readable else OPEN_CLIP


def load_models(
    families: Sequence[str],
    sources: Sequence[str | os.PathLike[str]],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    autoencoder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Both models, as the pipeline takes them.

    A family of models is imported when it is used, for it has libraries of its own, and after the folders were seen
    to be there: that takes seconds.
    """
    given = {"diffusion": sources[0], "clip": sources[1], "autoencoder": autoencoder}
    for argument, source in given.items():
        if source is not None:
            check_folder(source, argument=argument)
    options: dict[str, Any] = {} if autoencoder is None else {"autoencoder": autoencoder}
    if options and families[0] not in (STABLE_DIFFUSION, DIFFUSION_TRANSFORMER):
        raise ValueError(refusal("autoencoder", "none, for this source of attention has no latent", repr(autoencoder)))
    return {
        role: load_model(family, source, device=device, dtype=dtype, **more)
        for role, family, source, more in zip(
            ("attention", "text_image"), families, sources, (options, {}), strict=True
        )
    }


def load_model(family: str, source: str | os.PathLike[str], **options: Any) -> Any:
    """One of them."""
    module, _, name = family.partition(":")
    return getattr(importlib.import_module(module), name).from_pretrained(source, **options)


def _model_type(source: str | os.PathLike[str]) -> str | None:
    """What a checkpoint's own config calls it, or None where it has none."""
    found = (_read(source, "config.json") or {}).get("model_type")
    return found if isinstance(found, str) else None


def _read(source: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    """The object in a JSON file of a checkpoint; None where there is no such file, empty where it holds none."""
    file = _find(source, name)
    if file is None:
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _find(source: str | os.PathLike[str], name: str) -> Path | None:
    """A file of a checkpoint: in its folder, in the hub's cache, or fetched."""
    if is_local(source):
        folder: Path | None = Path(source).expanduser()
    else:
        folder = hub.cached_folder(str(source))
    if folder is not None and (folder / name).is_file():
        return folder / name
    if is_local(source) or hub.why_unreachable():
        return None
    try:
        return hub.find_file(str(source), name, subfolder=None)
    except Exception:  # of the hub's library, of many kinds; the loader says it in words
        return None
