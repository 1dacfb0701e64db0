"""What is profiled and swept on a GPU, planned here: the six kernels, their candidates, and a line for each."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import six_kernels


def test_six_kernels_are_planned_whole() -> None:
    launches = six_kernels.six_kernels("cpu")
    assert len(launches) == 6
    assert len({launch.kernel.__name__ for launch in launches.values()}) == 6
    assert all(launch.programs for launch in launches.values())


def test_candidates_start_with_the_chosen_and_cover_the_same_rows() -> None:
    launches = six_kernels.six_kernels("cpu")
    for name, launch in launches.items():
        found = list(six_kernels.candidates(name, launch))
        assert found[0] is launch
        assert len(found) >= len(six_kernels.WARPS) * len(six_kernels.STAGES)
        keys = [(c.warps, c.stages, str(c.constants)) for c in found]
        assert len(set(keys)) == len(keys)
    q = launches["attention_entropy"].arguments["q"]
    for candidate in six_kernels.candidates("attention_entropy", launches["attention_entropy"]):
        rows = candidate.programs // (q.shape[0] * q.shape[1]) * candidate.constants["ROWS"]
        assert q.shape[2] <= rows < q.shape[2] + candidate.constants["ROWS"]


@pytest.mark.parametrize(("option", "said"), [("--ncu", "6 launches planned"), ("--sweep", "none timed")])
def test_without_a_gpu_it_says_so(
    option: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = [{"index": 0, "error": None}, {"index": 1, "error": "OutOfResources: no"}]
    monkeypatch.setattr(six_kernels, "compile_in_processes", lambda launches, target, jobs: iter(compiled))
    monkeypatch.setattr(sys, "argv", ["", "--device", "cpu", option, str(tmp_path / "out.csv")])
    assert six_kernels.main() == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "no GPU" in printed
    if option == "--sweep":
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["error"] for row in rows] == ["no GPU: compiled for sm_90, not timed", "OutOfResources: no"]
        assert [row["chosen"] for row in rows] == ["True", "True"]
