"""The stage that compiles all kernels first: what it plans is every kernel there is, and it names what fails."""

from __future__ import annotations

import csv
import importlib
import os
import pkgutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import compile_kernels

import nerve_kernels._triton
from nerve_kernels._operators import library
from nerve_kernels._triton.compilation import distinct


def test_every_kernel_is_planned() -> None:
    modules = pkgutil.walk_packages(nerve_kernels._triton.__path__, "nerve_kernels._triton.")
    names = {
        name for found in modules for name in vars(importlib.import_module(found.name)) if name.endswith("_kernel")
    }
    usual = library.Operator.__call__
    launches = compile_kernels.planned(small=False)
    assert library.Operator.__call__ is usual
    planned = {launch.kernel.__name__ for launch in distinct(launches)}
    assert names - planned <= {"normalize_rows_kernel"}  # of windows wider than any here
    assert len(planned) > 8


def test_a_kernel_that_fails_is_named_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def results(launches, target, jobs):  # type: ignore[no-untyped-def]
        assert target == ("cuda", 90, 32)
        for index in range(len(launches)):
            yield {"index": index, "seconds": 0.5, "error": "PTXASError: no" if index == 1 else None}

    monkeypatch.setattr(compile_kernels, "compile_in_processes", results)
    monkeypatch.setattr(sys, "argv", ["", "--device", "cpu", "--small", "--out", str(tmp_path / "kernels.csv")])
    assert compile_kernels.main() == 1
    printed = capsys.readouterr().out
    assert "PTXASError: no" in printed
    with (tmp_path / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) > 8
    assert [row["error"] for row in rows[:3]] == ["", "PTXASError: no", ""]
    assert f"{len(rows)} kernels compiled" in printed
