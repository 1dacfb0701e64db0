"""The documentation: each page's Python examples run, top to bottom, and its links and images are there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from docs import make_tables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
IMAGE = ROOT / "src/nerve_kernels/segmentation/embedded/demo/scene_noto_1.png"
PAGES = sorted(DOCS.rglob("*.md"))
ROOMS = ("benchmarks", "training", "verification")
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md")), *(page for room in ROOMS for page in sorted(ROOT.glob(f"{room}/*.md")))]
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
WITH_EXAMPLES = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(IMAGE, tmp_path / "image.png")
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        # Empty lines before it, so that an error names the page's own line.
        code = "\n" * text[: found.start(1)].count("\n") + found[1]
        exec(compile(code, str(page), "exec"), scope)


def test_every_link_leads_somewhere():
    checked = 0
    for page in TEXTS:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link.split("#")[0]).exists(), f"{page.name}: {link}"
                checked += 1
    assert checked > 10


def test_every_module_that_a_text_says_to_run_is_there():
    modules = {
        name
        for page in TEXTS
        for name in re.findall(r"python -m ((?:benchmarks|training|verification)[\w.]*)", page.read_text("utf-8"))
    }
    assert len(modules) > 3
    for name in modules:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_every_public_operator_is_in_the_reference():
    import nerve_kernels as nk

    reference = (DOCS / "reference/operators.md").read_text(encoding="utf-8")
    missing = [name for name in nk.__all__ if name != "__version__" and f"::: nerve_kernels.{name}\n" not in reference]
    assert missing == []


def test_the_tables_of_facts_are_those_of_their_sources():
    """Speed and quality from ``benchmarks/results/``, backends and variables from the package."""
    marked = make_tables.pages()
    assert {page.name for page in marked} >= {"README.md", "backends.md", "limits.md"}
    for page in marked:
        text = page.read_text(encoding="utf-8")
        assert make_tables.filled(text) == text, f"{page.name}: run python docs/make_tables.py"


def test_the_tables_are_of_all_backends_and_variables():
    from nerve_kernels._operators.dispatch import BACKENDS
    from nerve_kernels.environment import VARIABLES

    assert all(f"| `{name}` |" in make_tables.backends() for name in BACKENDS)
    assert all(f"`{name}`" in make_tables.variables() for variable in VARIABLES for name in variable.names)
