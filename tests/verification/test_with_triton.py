"""The gate that runs with the oldest Triton promised: fetched once, first on the path, and certainly that one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from verification import torch_headers, with_triton
from verification.__main__ import CHECKS, OLDEST_TRITON
from verification.checks import ROOT, UNAVAILABLE

MODULE = "import os\n__version__ = '{}'\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch_headers, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def index_with(monkeypatch: pytest.MonkeyPatch, version: str) -> list[tuple[str, ...]]:
    """A package index with this Triton; returns what pip is asked for."""
    asked = []

    def pip(*arguments: str) -> str:
        asked.append(arguments)
        package = Path(arguments[arguments.index("--target") + 1]) / "triton"
        (package / "profiler").mkdir(parents=True)
        (package / "__init__.py").write_text(MODULE.format(version), encoding="utf-8")
        return ""

    monkeypatch.setattr(torch_headers, "pip", pip)
    return asked


def test_it_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = index_with(monkeypatch, "9.9.9")
    assert with_triton.folder_of("9.9.9") == with_triton.folder_of("9.9.9") == cache / "triton-9.9.9"
    assert len(asked) == 1
    assert "triton==9.9.9" in asked[0]
    assert sorted(path.name for path in cache.iterdir()) == ["triton-9.9.9"]


def test_the_module_runs_with_it(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    index_with(monkeypatch, "9.9.9")
    assert with_triton.main(["9.9.9", "nvcc", "--help"]) == 0
    printed = capfd.readouterr().out
    assert "with Triton 9.9.9" in printed
    assert "--architectures" in printed
    assert with_triton.main(["9.9.9", "nvcc", "--no-such-option"]) == 2


def test_another_triton_in_its_place_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    index_with(monkeypatch, "9.9.8")
    assert with_triton.main(["9.9.9", "nvcc", "--help"]) == 1
    assert "triton: expected 9.9.9" in capfd.readouterr().out


def test_without_a_network_it_did_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unreachable(*arguments: str) -> str:
        raise torch_headers.CannotFetchError("no index")

    monkeypatch.setattr(torch_headers, "pip", unreachable)
    assert with_triton.main(["9.9.9", "static_grid"]) == UNAVAILABLE
    assert "skipped: cannot be fetched: no index" in capsys.readouterr().out


def test_it_is_the_triton_that_is_promised_and_compiles_and_interprets_with_it() -> None:
    promised = re.search(r"triton>=([\d.]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert promised is not None
    assert OLDEST_TRITON.startswith(promised[1])
    with_it = {check.rung for check in CHECKS if OLDEST_TRITON in check.command}
    assert with_it == {"3", "7"}
