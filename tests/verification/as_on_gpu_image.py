"""``python as_on_gpu_image.py FILE...``: the GPU tests' fixtures and imports where only a GPU image's packages are.

Every other installed package is hidden from imports. Marks that skip are taken off, and fixtures are set up without
running a test: so a package that a fixture imports is missed here as it would be on a GPU.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest

PACKAGES = Path(__file__).with_name("gpu_image_packages.txt")


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hidden_modules() -> set[str]:
    """Top-level modules that only packages outside the image bring."""
    lines = PACKAGES.read_text(encoding="utf-8").splitlines()
    there = {normalized(line) for line in lines if not line.startswith("#")} | {"nerve-kernels"}
    modules = importlib.metadata.packages_distributions()
    return {module for module, owners in modules.items() if not {normalized(owner) for owner in owners} & there}


class WithoutOthers(PathFinder):
    """The usual search for modules, which does not find the hidden ones."""

    HIDDEN = hidden_modules()

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in cls.HIDDEN else super().find_spec(fullname, path, target)


class SetUpAll:
    """Fixtures are set up whether or not there is a GPU."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for node in item.listchain():
                node.own_markers[:] = [mark for mark in node.own_markers if not mark.name.startswith("skip")]


if __name__ == "__main__":
    sys.meta_path[:] = [WithoutOthers if finder is PathFinder else finder for finder in sys.meta_path]
    options = ["-q", "-rs", "-m", "gpu", "--setup-only", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # pytest loads its plugins from their metadata, those that are hidden too
    options += ["-p", "no:playwright", "-p", "no:anyio"]
    sys.exit(pytest.main([*options, *sys.argv[1:]], plugins=[SetUpAll()]))
