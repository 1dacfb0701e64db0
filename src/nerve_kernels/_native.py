"""The compiled extensions, CPU and CUDA: each loaded once, when first asked for.

Where one is missing or broken, the reason is kept.
"""

from __future__ import annotations

import functools
import importlib.machinery
import warnings
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_EXTENSION = "_C"
_CUDA_EXTENSION = "_C_cuda"
_FAILURE_NOTE = "_build_failure.txt"  # written by setup.py
_HOW_TO_BUILD = (
    "install a C++20 compiler (g++ or clang), then reinstall nerve-kernels with `pip install --no-build-isolation`"
)
_HOW_TO_BUILD_CUDA = (
    "with nvcc on the PATH and a CUDA torch installed, reinstall nerve-kernels with `pip install --no-build-isolation`"
)


def extension_loaded() -> bool:
    """Whether the compiled operators can be called."""
    return load_error() is None


def load_error() -> str | None:
    """Why the compiled operators cannot be called, or None where they can."""
    return _load(_HERE)


def why_not_loaded() -> str | None:
    """The same as a sentence about the backend."""
    return None if extension_loaded() else f"the compiled extension is not loaded: {load_error()}"


def cuda_extension_loaded() -> bool:
    """Whether the operators compiled by nvcc can be called."""
    return cuda_load_error() is None


def cuda_load_error() -> str | None:
    """Why the operators compiled by nvcc cannot be called, or None where they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return _load(_HERE, _CUDA_EXTENSION)


def why_cuda_not_loaded() -> str | None:
    """The same as a sentence about the backend."""
    return None if cuda_extension_loaded() else f"the compiled CUDA extension is not loaded: {cuda_load_error()}"


def extension_path(directory: Path, extension: str = _EXTENSION) -> Path | None:
    """A compiled extension in ``directory``, or None where there is none for this Python."""
    candidates = (directory / f"{extension}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _load(directory: Path, extension: str = _EXTENSION) -> str | None:
    """Load an extension in ``directory``; the reason why not, if it cannot be."""
    how_to_build = _HOW_TO_BUILD if extension == _EXTENSION else _HOW_TO_BUILD_CUDA
    path = extension_path(directory, extension)
    if path is None:
        return f"{_why_there_is_none(directory, extension)}; {how_to_build}"
    try:
        torch.ops.load_library(str(path))
    except Exception as error:  # a broken binary must not break the package: the operators have another backend
        return f"{path.name} does not load into torch {torch.__version__} ({error}); {how_to_build}"
    return None


def _why_there_is_none(directory: Path, extension: str) -> str:
    note = directory / _FAILURE_NOTE
    if note.is_file():
        return f"it could not be compiled when the package was installed ({note.read_text(encoding='utf-8').strip()})"
    return f"it was not compiled (there is no {extension} in {directory})"


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
