"""What may import what below the public functions, and the one table of environment variables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nerve_kernels
from nerve_kernels import grids, reference
from nerve_kernels.environment import VARIABLES

ROOT = Path(__file__).parents[2]
PACKAGE = Path(nerve_kernels.__file__).parent
# a folder, and what none of its modules may import
FORBIDDEN = {
    "_triton": ("_operators", "_cuda", "reference", "segmentation"),
    "_cuda": ("_operators", "_triton", "reference", "segmentation"),
    "_operators": ("reference", "segmentation", "attention", "affinity", "walk"),
}


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names, from the package on; ``from x import y`` may be the module x.y."""
    inside = ("nerve_kernels", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_nothing_is_imported_against_the_flow(folder):
    modules = sorted((PACKAGE / folder).rglob("*.py"))
    assert len(modules) > 2
    for path in modules:
        for name in imported_modules(path):
            for forbidden in FORBIDDEN[folder]:
                assert not f"{name}.".startswith(f"nerve_kernels.{forbidden}."), f"{path.name} imports {name}"


def test_the_specification_and_the_kernels_state_the_same_constant():
    assert grids.MIN_WINDOW_MASS == reference.WINDOW_MASS_FLOOR


def test_every_variable_that_the_package_reads_is_in_the_table():
    known = {name for variable in VARIABLES for name in variable.names}
    read = set()
    for path in [*PACKAGE.rglob("*.py"), ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]:
        if path.suffix in (".py", ".h", ".cpp"):
            text = path.read_text(encoding="utf-8")
            read.update(re.findall(r"(?:environ\.get|getenv)\(\s*\"(\w+)\"", text))
    assert len(read) > 5
    assert read <= known, read - known
