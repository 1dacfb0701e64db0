"""The compiled extension: loaded once, when first asked for. Where it is missing or broken, the reason is kept."""

from __future__ import annotations

import functools
import importlib.machinery
import warnings
from pathlib import Path

import torch

_EXTENSION = "_C"
_FAILURE_NOTE = "_build_failure.txt"  # written by setup.py
_HOW_TO_BUILD = (
    "install a C++20 compiler (g++ or clang), then reinstall nerve-kernels with `pip install --no-build-isolation`"
)


def extension_loaded() -> bool:
    """Whether the compiled operators can be called."""
    return load_error() is None


def load_error() -> str | None:
    """Why the compiled operators cannot be called, or None where they can."""
    return _load(Path(__file__).parent)


def extension_path(directory: Path) -> Path | None:
    """The compiled extension in ``directory``, or None where there is none for this Python."""
    candidates = (directory / f"{_EXTENSION}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _load(directory: Path) -> str | None:
    """Load the extension in ``directory``; the reason why not, if it cannot be."""
    path = extension_path(directory)
    if path is None:
        return _why_there_is_none(directory)
    try:
        torch.ops.load_library(str(path))
    except Exception as error:  # a broken binary must not break the package: the operators have another backend
        return f"{path.name} does not load into torch {torch.__version__} ({error}); {_HOW_TO_BUILD}"
    return None


def _why_there_is_none(directory: Path) -> str:
    note = directory / _FAILURE_NOTE
    if note.is_file():
        reason = note.read_text(encoding="utf-8").strip()
        return f"it could not be compiled when the package was installed ({reason}); {_HOW_TO_BUILD}"
    return f"it was not compiled (there is no {_EXTENSION} in {directory}); {_HOW_TO_BUILD}"


@functools.cache
def warn_if_slower() -> None:
    """Warn, once, that an operator runs without the compiled extension although its inputs are on the CPU."""
    reason = load_error()
    if reason is not None:
        warnings.warn(
            f"nerve_kernels runs on plain PyTorch, slower than it could: the compiled extension is missing: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
