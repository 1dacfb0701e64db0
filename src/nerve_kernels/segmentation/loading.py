"""Load checkpoints from a folder or the hub: safetensors only, and plain words on failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Loaded = TypeVar("Loaded")


class ModelLoadError(OSError):
    """A checkpoint is neither a complete folder here nor reachable on the hub."""


def load_part(
    load: Callable[..., Loaded],
    source: str | os.PathLike[str],
    *,
    argument: str,
    subfolder: str | None = None,
    weights: bool = True,
    **options: Any,
) -> Loaded:
    """Call a library's ``from_pretrained`` and turn its failures into one sentence.

    Args:
        load: the ``from_pretrained`` of a diffusers or transformers class.
        source: a folder, or a model id of the hub.
        argument: what the caller calls the source, for the message.
        subfolder: the part of a Stable Diffusion checkpoint.
        weights: whether this part has weights; those are read as safetensors, never pickles.
        options: handed on to `load`.

    Returns:
        What `load` returns.

    Raises:
        ModelLoadError: names the argument, the source, the part and the first reason.
    """
    if weights:
        options["use_safetensors"] = True
    if subfolder is not None:
        options["subfolder"] = subfolder
    local = is_local(source)
    if local:
        options["local_files_only"] = True
        folder = Path(source).expanduser()
        if not (folder / (subfolder or "")).is_dir():
            raise ModelLoadError(
                f"{argument}: the folder {folder / (subfolder or '')} does not exist; wanted a "
                "checkpoint in the hub's folder format"
            )
        source = folder
    try:
        return load(str(source), **options)
    except Exception as error:  # the libraries raise many kinds, from OSError to httpx errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if "use_safetensors" in reason:  # the library's advice is to read pickles instead
            reason = "it has no safetensors weights, and pickles are not read here."
        part = f" ({subfolder})" if subfolder else ""
        if local:
            raise ModelLoadError(
                f"{argument}: cannot load {source}{part}: {reason} Wanted a complete checkpoint "
                "in the hub's folder format with safetensors weights."
            ) from error
        raise ModelLoadError(
            f"{argument}: cannot load {source!s}{part} from the Hugging Face hub: {reason} "
            "Check the name and the connection, give a folder that holds the checkpoint, or use "
            "the preset 'embedded', which needs neither."
        ) from error


def is_local(source: str | os.PathLike[str]) -> bool:
    """Whether a source is meant as a folder: it exists, or cannot be a hub id.

    Example:
        >>> is_local("./models/sd"), is_local("openai/clip-vit-base-patch16")
        (True, False)
    """
    text = os.fspath(source)
    if not isinstance(source, str) or Path(text).expanduser().is_dir():
        return True
    return text.startswith((".", "~", os.sep)) or text.count("/") > 1 or "\\" in text


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ValueError: not a device of this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except Exception as error:  # torch raises RuntimeError, AssertionError, NotImplementedError
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device: got {str(device)!r}, which cannot be used here ({reason}); wanted 'cpu' or "
            "a device of this machine, such as 'cuda'"
        ) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """float16 on a GPU and float32 elsewhere, unless told otherwise.

    Raises:
        ValueError: not one of float32, float16, bfloat16.
    """
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    known: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)
    for candidate in known:
        if dtype in (candidate, str(candidate), str(candidate).removeprefix("torch.")):
            return candidate
    raise ValueError(f"dtype: got {dtype!r}, wanted float32, float16 or bfloat16")


def freeze(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Put a model in evaluation mode on its device; nothing here is ever trained."""
    model.eval().requires_grad_(False).to(device)
    if model.dtype != dtype:  # diffusers warns of casts, also of those that change nothing
        model.to(dtype)
