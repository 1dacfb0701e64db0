"""An install succeeds, with one warning and a reason that stays, where the native ops cannot be compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import WARNING, Build

pytestmark = pytest.mark.slow

USE_IT = """
import warnings
import torch
import nerve_kernels as nk
from nerve_kernels import _native

print(_native.load_error())
assert nk.available_backends() == ("eager",), nk.available_backends()
affinity = nk.LocalAffinity(torch.full((1, 6, 9), 0.1), grid=(2, 3), window=3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        result = affinity @ torch.rand(1, 6, 4)
assert result.shape == (1, 6, 4)
print([str(warning.message) for warning in caught if issubclass(warning.category, RuntimeWarning)])
"""


def assert_pure_python_and_explained(build: Build, reason: str) -> None:
    assert build.wheel.name.endswith("-py3-none-any.whl")
    assert build.log.count(WARNING) == 1
    assert not [name for name in build.names() if name.endswith(".so")]
    finished = build.run(USE_IT)
    assert finished.returncode == 0, finished.stderr
    load_error, warnings_raised = finished.stdout.strip().splitlines()
    assert reason in load_error
    assert "install a C++20 compiler" in load_error
    assert warnings_raised.count("nerve_kernels runs on plain PyTorch") == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/nowhere/c++", "there is no /nowhere/c++"), ("false", "false failed with exit code 1")],
)
def test_a_broken_compiler(compiler: str, reason: str, build_with: Callable[..., Build]) -> None:
    assert_pure_python_and_explained(build_with(CXX=compiler), reason)


def test_no_torch_in_the_build_environment(
    tmp_path_factory: pytest.TempPathFactory, build_with: Callable[..., Build]
) -> None:
    shadow = tmp_path_factory.mktemp("shadow")
    (shadow / "torch.py").write_text("raise ImportError('No module named torch')\n")
    build = build_with(PYTHONPATH=str(shadow))
    assert_pure_python_and_explained(build, "torch cannot be imported in the build environment")
