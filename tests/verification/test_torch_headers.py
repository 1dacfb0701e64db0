"""The gate that compiles csrc/ against a torch's headers: what it fetches, what it keeps, what it reports."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from verification import torch_headers
from verification.__main__ import CHECKS
from verification.checks import MISSING, ROOT, UNAVAILABLE, Check, python, run_check

OLD, NEW = "#define OF_EVERY_TORCH 1\n", "#define OF_EVERY_TORCH 1\n#define OF_A_NEW_TORCH 2\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch_headers, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def index_with(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, ...]]:
    """A package index whose torch wheel has these headers; returns what pip is asked for."""
    asked = []

    def pip(*arguments: str) -> str:
        asked.append(arguments)
        if arguments[0] == "install":
            return '{"install": [{"metadata": {"version": "9.9.9"}}]}'
        wheel = Path(arguments[arguments.index("--dest") + 1]) / "torch-9.9.9-cp312-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in names:
                archive.writestr(f"torch/include/{name}", OLD)
            archive.writestr("torch/lib/libtorch_cpu.so", "large")
        return ""

    monkeypatch.setattr(torch_headers, "pip", pip)
    return asked


def test_headers_are_fetched_once_and_nothing_else_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = index_with(monkeypatch, *torch_headers.NEEDED)
    include = torch_headers.headers_of("9.9.9")
    assert torch_headers.headers_of("9.9.9") == include
    assert len(asked) == 1
    files = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    assert files == {f"torch-9.9.9/torch/include/{name}" for name in torch_headers.NEEDED}


def test_a_wheel_without_the_headers_of_cuda_is_no_wheel_to_judge_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index_with(monkeypatch, *torch_headers.NEEDED[:2])
    assert torch_headers.main(["newest"]) == UNAVAILABLE
    assert "torch 9.9.9 has no header c10/cuda/CUDAStream.h" in capsys.readouterr().out


def test_without_a_network_it_did_not_run(tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = python("-m", "verification.torch_headers", "2.10.0")
    outcome = run_check(Check("headers", command, environment=offline, optional=True))
    assert outcome.result == MISSING
    assert outcome.remark.startswith("skipped: cannot be fetched: ")
    assert not outcome.is_failure


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(("header", "compiles"), [(OLD, False), (NEW, True)])
def test_what_a_torch_lacks_is_an_error(header: str, compiles: bool, tmp_path: Path) -> None:
    include, sources = tmp_path / "include", tmp_path / "csrc"
    (include / "torch").mkdir(parents=True)
    (include / "torch" / "macros.h").write_text(header, encoding="utf-8")
    (sources / "cpu").mkdir(parents=True)
    for name, macro in (("good", "OF_EVERY_TORCH"), ("newer", "OF_A_NEW_TORCH")):
        code = f"#include <torch/macros.h>\nint {name}() {{ return {macro}; }}\n"
        (sources / "cpu" / f"{name}.cpp").write_text(code, encoding="utf-8")
    failed = torch_headers.compile_all(include, 1, sources)
    assert [path.name for path in failed] == ([] if compiles else ["newer.cpp"])
    assert all("OF_A_NEW_TORCH" in messages for messages in failed.values())


def test_the_gate_begins_with_the_oldest_torch_that_is_promised() -> None:
    promised = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    gated = [check.command[3] for check in CHECKS if "verification.torch_headers" in check.command]
    assert {f"{version}.0" for version in promised} == {gated[0]}
    assert gated[1:] == ["2.11.0", "newest"]
