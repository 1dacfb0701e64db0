"""make gpu-check: it fits its time and runs without an install."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from verification import gpu_check, gpu_tests, prebuilt
from verification.checks import LATE, PASSED, ROOT, Check, run_check

HERE = Path(__file__).parent


def test_the_stages_on_a_gpu_sum_to_eight_minutes(tmp_path: Path) -> None:
    stages = gpu_check.stages(tmp_path, "9.0")
    assert sum(stage.limit_seconds for stage in stages) <= gpu_check.LIMIT_SECONDS == 8 * 60
    assert all(stage.grace_seconds < stage.limit_seconds for stage in stages)
    assert stages[0].environment == {"TORCH_CUDA_ARCH_LIST": "9.0", "FORCE_CUDA": "1"}  # not to build it is a failure


def module_of(check: Check) -> str:
    """What of ours it runs."""
    return check.command[check.command.index("-m") + 1] if "-m" in check.command else " ".join(check.command[1:3])


def test_the_dry_run_takes_the_same_way(tmp_path: Path) -> None:
    real, dry = gpu_check.stages(tmp_path, "9.0"), gpu_check.stages(tmp_path)
    assert [module_of(stage) for stage in real] == [module_of(stage) for stage in dry]
    assert all(there.name.startswith(stage.name) for stage, there in zip(real, dry, strict=True))
    devices = [stage.command[stage.command.index("--device") + 1] for stage in dry if "--device" in stage.command]
    assert len(devices) >= 4
    assert set(devices) == {"cpu"}


def test_a_stage_that_is_late_is_asked_to_write_what_it_has(tmp_path: Path) -> None:
    code = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(tmp_path / "kept")!r}).write_text("what it had")
"""
    outcome = run_check(Check("late", [sys.executable, "-c", code], limit_seconds=8, grace_seconds=5))
    assert outcome.result == LATE
    assert (tmp_path / "kept").read_text(encoding="utf-8") == "what it had"


def test_a_prebuilt_library_is_checked_in_place_of_the_build(tmp_path: Path) -> None:
    built, carried = (gpu_check.stages(tmp_path, "9.0", prebuilt=prebuilt) for prebuilt in (False, True))
    assert [check.name for check in carried[1:]] == [check.name for check in built[1:]]
    assert carried[0].command[1:] == ["-m", "verification.prebuilt"]
    assert not carried[0].optional


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CUDA library for sm_90a, and beside it one that needs what no torch has."""
    folder = tmp_path_factory.mktemp("prebuilt")
    kernel = "__global__ void twice(float* x) { *x *= 2; }\n"
    needy = 'extern "C" int of_another_torch(); extern "C" int call() { return of_another_torch(); }\n'
    for name, code in (("_C_cuda", kernel), ("needy", kernel + needy)):
        (folder / f"{name}.cu").write_text(code, encoding="utf-8")
        command = ["nvcc", "-shared", "-gencode", "arch=compute_90a,code=sm_90a", "-Xcompiler", "-fPIC"]
        subprocess.run([*command, f"{name}.cu", "-o", f"{name}.so"], cwd=folder, check=True)
    return folder / "_C_cuda.so"


@needs_nvcc
@pytest.mark.parametrize(("capability", "fits"), [((9, 0), True), ((8, 0), False), ((10, 0), False), ((9, 1), False)])
def test_a_prebuilt_library_fits_its_own_architecture(library: Path, capability: tuple[int, int], fits: bool) -> None:
    reason = prebuilt.why_unsupported(library, capability)
    number = "".join(map(str, capability))
    assert reason == (None if fits else f"expected code for sm_{number}, got sm_90a")


@needs_nvcc
def test_a_prebuilt_library_of_another_torch_is_refused(library: Path) -> None:
    reason = prebuilt.why_unsupported(library.with_name("needy.so"), (9, 0))
    assert reason is not None
    assert f"torch {torch.__version__} cannot load it" in reason
    assert "of_another_torch" in reason


def test_no_prebuilt_library_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    assert prebuilt.main() == 1
    assert "leave PREBUILT out" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("given", "passed"), [([], []), (["OUT=a folder", "PREBUILT=1"], ["--out", "a folder", "--prebuilt"])]
)
def test_make_passes_on_where_results_go(given: list[str], passed: list[str], tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n', encoding="utf-8")
    interpreter.chmod(0o755)
    command = ["make", "-s", "gpu-check", f"PYTHON={interpreter}", f"VENV={tmp_path / 'none'}", *given]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = ["-m", "verification.gpu_check", *passed]
    assert printed.splitlines()[-len(words) :] == [f"[{word}]" for word in words]


def test_files_with_gpu_tests_are_found() -> None:
    found = gpu_tests.gpu_tests()
    assert "tests/gpu/test_walk_on_gpu.py" in found
    assert "tests/gpu/test_registry_on_gpu.py" in found
    assert "tests/gpu/test_real_sizes.py" in found
    assert "tests/segmentation/test_pipeline_on_gpu.py" in found
    assert not [name for name in found if name.startswith("tests/verification/")]  # which only speak of them


def as_on_gpu_image(*files: str) -> subprocess.CompletedProcess[str]:
    """pytest on these files, up to their fixtures, without what a GPU image lacks."""
    command = [sys.executable, str(HERE / "as_on_gpu_image.py"), *files]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_gpu_tests_need_nothing_that_a_gpu_image_lacks() -> None:
    finished = as_on_gpu_image(*gpu_tests.gpu_tests())
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "tests/gpu/test_walk_on_gpu.py::" in finished.stdout
    if importlib.util.find_spec("diffusers") is not None:  # hidden there
        assert "diffusers is not installed" in finished.stdout


@pytest.mark.parametrize("what", ["module", "fixture"])
def test_a_test_that_needs_more_is_found(what: str, tmp_path: Path) -> None:
    missing = "import ruff"  # installed wherever tests are developed, on no GPU
    assert importlib.util.find_spec("ruff") is not None
    lines = ["import pytest", missing if what == "module" else "", "pytestmark = [pytest.mark.gpu, pytest.mark.skip]"]
    lines += ["@pytest.fixture", "def model():", f"    {missing}", "def test_it(model): ..."]
    (tmp_path / "test_needy.py").write_text("\n".join(lines), encoding="utf-8")
    finished = as_on_gpu_image(str(tmp_path / "test_needy.py"))
    assert finished.returncode != 0
    assert "No module named 'ruff'" in finished.stdout


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
