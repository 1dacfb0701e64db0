"""Loading the extension never raises; what is wrong with it is said in words that lead on."""

from __future__ import annotations

import importlib.machinery
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from nerve_kernels import _native

ADVICE = "install a C++20 compiler"


@pytest.fixture
def unwarned() -> Iterator[None]:
    """As in a process that has not warned yet; what this test caches is forgotten after it."""
    _native.warn_if_slower.cache_clear()
    yield
    _native.warn_if_slower.cache_clear()


def test_nothing_there(tmp_path: Path) -> None:
    reason = _native._load(tmp_path)
    assert reason is not None
    assert str(tmp_path) in reason
    assert ADVICE in reason


def test_a_failed_build_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "_build_failure.txt").write_text("there is no c++\n")
    reason = _native._load(tmp_path)
    assert reason is not None
    assert "when the package was installed (there is no c++)" in reason


def test_a_broken_binary_keeps_the_loader_s_words(tmp_path: Path) -> None:
    path = tmp_path / f"_C{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    path.write_bytes(b"no library at all")
    reason = _native._load(tmp_path)
    assert reason is not None
    assert path.name in reason
    assert "does not load into torch" in reason
    assert ADVICE in reason


def test_the_cuda_extension_has_reasons_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = _native._load(tmp_path, "_C_cuda")
    assert reason is not None
    assert f"it was not compiled (there is no _C_cuda in {tmp_path}); with nvcc on the PATH" in reason
    (tmp_path / f"_C_cuda{importlib.machinery.EXTENSION_SUFFIXES[-1]}").write_bytes(b"no library at all")
    _native._load.cache_clear()
    broken = _native._load(tmp_path, "_C_cuda")
    assert broken is not None
    assert "does not load into torch" in broken
    monkeypatch.setattr(_native.torch.version, "cuda", None)
    assert "is built without CUDA" in str(_native.cuda_load_error())


@pytest.mark.usefixtures("unwarned")
def test_one_warning_where_speed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "load_error", lambda: "it was not compiled")
    with pytest.warns(RuntimeWarning, match="runs on plain PyTorch.*: it was not compiled"):
        _native.warn_if_slower()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.warn_if_slower()


@pytest.mark.usefixtures("unwarned")
def test_no_warning_where_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "load_error", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.warn_if_slower()
