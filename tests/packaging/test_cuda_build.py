"""FORCE_CUDA=1 compiles csrc/cuda/ even against a CPU torch; without it, a CPU torch leaves csrc/cuda/ alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, WARNING, build_environment, has_compiler
from .test_extension_symbols import UNSTABLE_NAMES, undefined_symbols

pytestmark = pytest.mark.slow

KERNEL = """
extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }
extern "C" void launch_twice(float* x) { twice<<<1, 32>>>(x); }
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """This project's build files around the smallest sources that exercise them."""
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("README.md", "LICENSE", "NOTICE", "csrc/ops.cpp", "src/nerve_kernels/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "csrc" / "cuda").mkdir()
    (tmp_path / "csrc" / "cuda" / "twice.cu").write_text(KERNEL)
    return tmp_path


def build(project: Path, *, fails: bool = False, **changes: str | None) -> tuple[set[str], str]:
    """The shared libraries that a build leaves, and all that it printed."""
    finished = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", "built"],
        cwd=project, env=build_environment(**changes), capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = finished.stdout + finished.stderr
    assert (finished.returncode != 0) == fails, log
    return {path.name.partition(".")[0] for path in (project / "built").rglob("*.so")}, log


needs_compilers = pytest.mark.skipif(
    not has_compiler() or shutil.which("nvcc") is None, reason="needs a C++ compiler and nvcc on the PATH"
)


@needs_compilers
def test_forced_against_any_torch(project: Path) -> None:
    libraries, log = build(project, FORCE_CUDA="1", CUDA_HOME=None, TORCH_CUDA_ARCH_LIST="9.0")
    assert libraries == {"_C", "_C_cuda"}, log
    assert "arch=compute_90,code=sm_90" in log


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA torch compiles csrc/cuda/ without being asked")
def test_left_alone_with_a_cpu_torch(project: Path) -> None:
    libraries, log = build(project)
    assert libraries == {"_C"}, log


def broken_nvcc(project: Path) -> str:
    """A CUDA_HOME whose nvcc compiles nothing."""
    nvcc = project / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    nvcc.chmod(0o755)
    return str(nvcc.parents[1])


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("no nvcc", "there is no nvcc in CUDA_HOME/bin or on the PATH"),
        ("a broken nvcc", "nvcc failed with exit code 7"),
        ("a broken compiler", "there is no /nowhere"),
    ],
)
def test_what_was_asked_for_and_cannot_be_built_fails(project: Path, what: str, reason: str) -> None:
    home = broken_nvcc(project) if what == "a broken nvcc" else str(project / "nowhere")
    changes = {"CXX": "/nowhere/c++"} if what == "a broken compiler" else {}
    libraries, log = build(project, fails=True, FORCE_CUDA="1", CUDA_HOME=home, **changes)
    assert libraries == set()
    assert WARNING not in log
    assert log.count("error: FORCE_CUDA=1, but the native ops cannot be built") == 1
    assert reason in log


@needs_compilers
def test_the_kernels_compile_and_link_without_spills(project: Path) -> None:
    """The real csrc/cuda/, for one GPU, or for all that TORCH_CUDA_ARCH_LIST names, as in `make verify`."""
    shutil.rmtree(project / "csrc" / "cuda")
    shutil.copytree(ROOT / "csrc" / "cuda", project / "csrc" / "cuda")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
    libraries, log = build(
        project, FORCE_CUDA="1", CUDA_HOME=None, TORCH_CUDA_ARCH_LIST=architectures, NVCC_APPEND_FLAGS="-Xptxas -v"
    )
    assert libraries == {"_C", "_C_cuda"}, log
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'", log)
    assert len(kernels) == 4 * len(architectures.split(";"))
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= len(kernels)
    assert set(spills) == {("0", "0", "0")}, log
    # two blocks of 256 threads share the 65,536 registers of a multiprocessor
    assert all(int(count) <= 128 for count in re.findall(r"Used (\d+) registers", log)), log
    (library,) = (project / "built").rglob("_C_cuda*.so")
    symbols = undefined_symbols(library)
    assert not [name for name in symbols if any(part in name for part in UNSTABLE_NAMES)]
