"""CONTRIBUTING's map of the repository: every folder that holds code is in it, and all that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = {".py", ".cpp", ".h", ".cu", ".cuh"}
NOT_OURS = {"build", "dist", "site", "demo", "node_modules"}


def named_in_the_map() -> list[str]:
    """The paths of the map, a file or a folder each; a line's indent says what it lies in."""
    tree = re.search(r"^```text\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert tree is not None
    paths: list[str] = []
    above: list[str] = []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = re.split(r"\s{2,}", line.strip())[0]
        above = [*above[:depth], name.rstrip("/")]
        paths.append("/".join(above) + ("/" if name.endswith("/") else ""))
    return paths


def folders_with_code() -> set[str]:
    """Every folder of the checkout in which a source file lies, less builds, caches and environments."""
    found = set()
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if (
            path.suffix in CODE
            and len(parts) > 1
            and not any(part.startswith(".") or part in NOT_OURS for part in parts)
        ):
            found.add("/".join(parts[:-1]) + "/")
    return found


def test_the_map_names_what_is_there():
    for path in named_in_the_map():
        where = ROOT / path
        assert where.is_dir() if path.endswith("/") else where.is_file(), path


def test_every_folder_with_code_is_in_the_map():
    missing = folders_with_code() - set(named_in_the_map())
    assert not missing, f"CONTRIBUTING.md's map lacks {sorted(missing)}"


def test_the_map_finds_what_it_should():
    assert {"src/nerve_kernels/", "csrc/", "tests/ops/"} <= folders_with_code()
    assert "src/nerve_kernels/segmentation/pipeline.py" in named_in_the_map()


def test_no_folder_of_the_package_holds_more_than_sixteen_modules():
    for folder in folders_with_code():
        if folder.startswith("src/"):
            modules = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py"]
            assert len(modules) <= 16, f"{folder} holds {len(modules)} modules"
