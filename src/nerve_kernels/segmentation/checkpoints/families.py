"""Which family of models a checkpoint is of, from what its own files say."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nerve_kernels.segmentation.loading import is_local
from nerve_kernels.segmentation.presets import CLIP, SIGLIP, STABLE_DIFFUSION, VISION_TRANSFORMER

from . import hub


def attention_family(source: str | os.PathLike[str]) -> str:
    """Where the class is that loads a checkpoint for its attention, as ``"module:class"``.

    A checkpoint with a ``model_index.json`` has several parts, as Stable Diffusion's; one with a ``config.json`` of its
    own that names a ``model_type`` is a transformer by itself. What cannot be read is left to Stable Diffusion's loader
    to refuse.
    """
    if _find(source, "model_index.json") is not None:
        return STABLE_DIFFUSION
    return STABLE_DIFFUSION if _model_type(source) is None else VISION_TRANSFORMER


def text_image_family(source: str | os.PathLike[str]) -> str:
    """Where the class is that loads a checkpoint for its patches and words; what is not SigLIP is taken for CLIP."""
    return SIGLIP if _model_type(source) == "siglip" else CLIP


def _model_type(source: str | os.PathLike[str]) -> str | None:
    """What a checkpoint's own config calls it, or None where it has none."""
    file = _find(source, "config.json")
    try:
        settings = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = settings.get("model_type") if isinstance(settings, dict) else None
    return found if isinstance(found, str) else None


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
