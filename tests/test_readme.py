"""The front door: every Python example of the README runs, and every file it points to is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import nerve_kernels as nk

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_loop_that_the_operator_replaces_gives_the_same():
    names = {
        "G": torch.rand(2, 12, 3, generator=torch.Generator().manual_seed(0)).softmax(-1),
        "S": torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(1)).softmax(-1),
    }
    operator, loop = next(
        (BLOCKS[i], BLOCKS[i + 1]) for i, block in enumerate(BLOCKS) if "nk.random_walk(G, S" in block
    )
    results = []
    for block in (operator, loop):
        scope = {"nk": nk, **names}
        exec(block, scope)
        results.append(scope["P"])
    assert torch.allclose(*results, atol=1e-6)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if "\nP = G\n" not in f"\n{b}"], ids=lambda b: b.splitlines()[-1][:40]
)
def test_every_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "src/nerve_kernels/segmentation/embedded/demo/scene_noto_1.png", tmp_path / "picture.png")
    torch.manual_seed(0)
    scope = {"G": torch.full((1, 4, 2), 0.5), "S": torch.full((1, 4, 4), 0.25)}
    exec(block, scope)
    if "P" in scope:
        assert (scope["P"].sum(-1) - 1).abs().max() < 1e-5
    if "result" in scope:
        assert (tmp_path / "out/picture_overlay.png").is_file()


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
