"""make gpu-check: it fits its time and runs without an install."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from verification import gpu_check
from verification.checks import PASSED, Check, run_check


def test_the_checks_on_a_gpu_fit_into_eight_minutes(tmp_path: Path) -> None:
    checks = gpu_check.checks_with_gpu(tmp_path, "9.0")
    assert gpu_check.LIMIT_SECONDS < 8 * 60
    assert checks[-1].limit_seconds < gpu_check.LIMIT_SECONDS
    assert checks[0].environment["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_files_with_gpu_tests_are_found() -> None:
    found = gpu_check.gpu_tests()
    assert "tests/gpu/test_walk_on_gpu.py" in found
    assert "tests/gpu/test_registry_on_gpu.py" in found


def test_the_sources_are_importable_without_an_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    folders = gpu_check.environment_of_checks(tmp_path)["PYTHONPATH"].split(os.pathsep)
    code = "import importlib.metadata as m; print(m.version('nerve-kernels'))"
    # without site-packages, where it is installed
    check = Check("version", [sys.executable, "-S", "-c", code], environment={"PYTHONPATH": os.pathsep.join(folders)})
    outcome = run_check(check)
    assert outcome.result == PASSED
    assert outcome.remark[0].isdigit()
