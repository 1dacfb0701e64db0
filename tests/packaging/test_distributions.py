"""What the wheel and the source distribution hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nerve_kernels import _native

from .conftest import ROOT, WARNING, Build, build_environment, copy_project, has_compiler

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "src" / "nerve_kernels"
DATA_FOLDERS = ("segmentation/embedded", "evaluation/class_names", "evaluation/embedded_scenes")


def package_files() -> set[str]:
    """Every module and every data file of the package, by its path below src/."""
    files = {PACKAGE / "py.typed", *PACKAGE.rglob("*.py")}
    for folder in DATA_FOLDERS:
        files |= {path for path in (PACKAGE / folder).rglob("*") if path.is_file()}
    return {str(path.relative_to(ROOT / "src")) for path in files if "__pycache__" not in path.parts}


def test_the_extension_of_this_environment_was_built() -> None:
    # the tests of the compiled ops are skipped without it, so its absence has to fail somewhere
    if not has_compiler():
        pytest.skip("no C++ compiler")
    assert _native.load_error() is None


def test_wheel_serves_every_python_from_311(native_build: Build) -> None:
    assert "-cp311-abi3-" in native_build.wheel.name
    assert WARNING not in native_build.log


def test_wheel_holds_the_package_its_data_and_the_extension(native_build: Build) -> None:
    names = native_build.names()
    assert package_files() - names == set()
    assert "nerve_kernels/_C.abi3.so" in names
    others = {name for name in names if not name.startswith("nerve_kernels/") and ".dist-info/" not in name}
    assert others == set()


def test_wheel_runs(native_build: Build) -> None:
    code = """
import nerve_kernels as nk
assert "cpp" in nk.available_backends()
print(nk.__file__)
"""
    finished = native_build.run(code)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(str(native_build.unpacked))


def test_source_distribution_is_complete(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=build_environment(), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    (archive,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    expected = {f"src/{name}" for name in package_files()}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    expected |= {"pyproject.toml", "setup.py", "constraints.txt", "Makefile", "LICENSE", "NOTICE", "README.md"}
    expected |= {f"tests/packaging/{Path(__file__).name}"}
    assert expected - names == set()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
