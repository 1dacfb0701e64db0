"""Which family of models a checkpoint is of, from what its own files say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nerve_kernels.segmentation.loading import is_local
from nerve_kernels.segmentation.presets import (
    CLIP,
    DIFFUSION_TRANSFORMER,
    SIGLIP,
    STABLE_DIFFUSION,
    VISION_TRANSFORMER,
)

from . import hub


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
    """Where the class is that loads a checkpoint for its patches and words; what is not SigLIP is taken for CLIP."""
    return SIGLIP if _model_type(source) == "siglip" else CLIP


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
