"""The extension asks torch for nothing but its stable C interface, so it outlives torch upgrades."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import nerve_kernels
from nerve_kernels import _native

# C++ names of torch (at::, c10::, torch::, caffe2::), which change from release to release
UNSTABLE_NAMES = ("2at", "3c10", "5torch", "6caffe2")


def undefined_symbols(library: Path) -> list[str]:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run([nm, "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    return [line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()]


@pytest.fixture
def symbols() -> list[str]:
    path = _native.extension_path(Path(nerve_kernels.__file__).parent)
    if path is None or path.suffix != ".so":
        pytest.skip(f"no extension of this kind: {_native.load_error()}")
    return undefined_symbols(path)


def test_torch_is_reached_through_its_stable_interface_only(symbols: list[str]) -> None:
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    assert not [name for name in symbols if any(part in name for part in UNSTABLE_NAMES)]


def test_every_function_of_torch_is_in_the_oldest_release_that_is_supported(symbols: list[str]) -> None:
    listed = Path(__file__).with_name("torch_2_10_shim.txt").read_text(encoding="utf-8").splitlines()
    oldest = {name for name in listed if not name.startswith("#")}
    used = {name for name in symbols if name.startswith(("aoti_torch_", "torch_"))}
    assert used
    assert used - oldest == set()


def test_python_is_not_reached_at_all(symbols: list[str]) -> None:
    assert not [name for name in symbols if name.startswith(("Py", "_Py"))]


def test_everything_else_is_the_c_and_cpp_runtime(symbols: list[str]) -> None:
    stable_interface = ("aoti_torch_", "torch_")
    cpp_runtime = re.compile(r"_ZN?[KRO]*S[a-z]?|_ZT[ISV]|_Zn[aw]|_Zd[al]|__|_ITM_|_Unwind_")
    c_library = re.compile(r"mem\w+|str\w+|getenv|free|malloc|abort|madvise|pthread_mutex_\w+|(exp|log|sqrt)f?")
    others = [name for name in symbols if not name.startswith(stable_interface)]
    assert not [name for name in others if not cpp_runtime.match(name) and not c_library.fullmatch(name)]
