"""Kernels broken on purpose: a copy of the package of kernels in which one line of one file is replaced."""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nerve_kernels

KERNELS = Path(nerve_kernels.__file__).parent / "_triton"
_numbers = itertools.count()


@contextmanager
def kernels_with(
    operation: str, file: str, original: str, replacement: str, directory: Path
) -> Iterator[Callable[..., Any]]:
    """``run`` of an operation in a copy of the kernels where ``original`` in ``file`` reads ``replacement``."""
    package = f"copy_{next(_numbers)}_of_the_kernels"
    shutil.copytree(KERNELS, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    (path,) = (directory / package).rglob(f"{file}.py")
    source = path.read_text(encoding="utf-8")
    assert original in source, "the mutation no longer applies"
    path.write_text(source.replace(original, replacement), encoding="utf-8")
    sys.path.insert(0, str(directory))
    try:
        (module,) = (directory / package).rglob(f"{operation}.py")
        yield importlib.import_module(f"{package}.{module.parent.name}.{operation}").run
    finally:
        sys.path.remove(str(directory))
        for module in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[module]
