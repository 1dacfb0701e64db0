"""Builds of a copy of this project, so that what is in the working tree (old binaries, caches) cannot leak in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "NOTICE", "README.md", "CHANGELOG.md",
         "CONTRIBUTING.md", "Makefile", "constraints.txt", "csrc", "src", "tests/packaging"]  # fmt: skip
WARNING = "warning: nerve-kernels is installed as pure Python"


def has_compiler() -> bool:
    """Whether a build that follows the environment finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++").split()[0], "c++", "clang++"))


def build_environment(**changes: str | None) -> dict[str, str]:
    """This process's environment, less what would steer a build, with ``changes`` (None removes a variable)."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CXXFLAGS", "FORCE_CUDA")}
    for key, value in changes.items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    return environment


@dataclass(frozen=True)
class Build:
    """What a build left: the wheel, everything it printed, and the wheel unpacked, ready for PYTHONPATH."""

    wheel: Path
    log: str
    unpacked: Path

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run a script that imports nerve_kernels from this build."""
        environment = build_environment(PYTHONPATH=str(self.unpacked), PYTHONWARNINGS=None)
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=self.unpacked,
            capture_output=True,
            text=True,
            check=False,
        )


def copy_project(destination: Path) -> Path:
    """A copy of the sources as a fresh clone has them, without binaries and caches."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "_build_failure.txt")
    destination.mkdir(exist_ok=True)
    for part in PARTS:
        source, target = ROOT / part, destination / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignore)
        elif source.is_file():
            shutil.copy(source, target)
    return destination


def run_build(command: list[str], project: Path, environment: dict[str, str]) -> Build:
    """Run a command that leaves a wheel in dist/, and unpack that wheel."""
    finished = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    log = finished.stdout + finished.stderr
    assert finished.returncode == 0, log
    (wheel,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(project / "unpacked")
    return Build(wheel, log, project / "unpacked")


def build_with_pip(project: Path, environment: dict[str, str]) -> Build:
    """``pip wheel``, the way users build, with the torch of this environment."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    return run_build([*command, "--wheel-dir", "dist", "."], project, environment)


def build_directly(project: Path, environment: dict[str, str]) -> Build:
    """What pip calls in the end, without the time that pip takes before."""
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    return run_build([sys.executable, "-c", code], project, environment)


def quick_compiler(folder: Path) -> str:
    """The compiler of this environment without optimisation: the extension that the other tests run has it."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    script = folder / "quick_compiler"
    script.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n', encoding="utf-8")
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="session")
def native_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The wheel as it is built where there is a compiler and CUDA_HOME is not set; one for all test processes."""
    if not has_compiler():
        pytest.skip("no C++ compiler: this machine builds the pure Python package only")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "native_build.lock"):
        project, log = shared / "native_build", shared / "native_build.log"
        if not log.exists():
            environment = build_environment(CUDA_HOME=None, CXX=quick_compiler(shared))
            build = build_with_pip(copy_project(project), environment)
            log.write_text(build.log)
        (wheel,) = (project / "dist").glob("*.whl")
        return Build(wheel, log.read_text(), project / "unpacked")


@pytest.fixture
def build_with(tmp_path: Path) -> Callable[..., Build]:
    """Build a fresh copy of the project in a changed environment."""
    return lambda **changes: build_directly(copy_project(tmp_path), build_environment(**changes))
