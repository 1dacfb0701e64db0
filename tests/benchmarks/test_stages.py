"""make verify and make gpu-check: what fails, what is named, what may be missing."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from benchmarks import catalog, gpu_check, gpu_nvcc, verify, verify_native
from benchmarks.cpu_expectations import EXPECTATIONS as CPU_EXPECTATIONS
from benchmarks.gpu_expectations import EXPECTATIONS
from benchmarks.stages import FAILED, LATE, MISSING, PASSED, Stage, module, path, program, run_stage, summary

GOOD = Stage("good", [sys.executable, "-c", "print('all is well')"])
BAD = Stage("bad", [sys.executable, "-c", "print('oh no'); raise SystemExit(3)"])
SLOW = Stage("slow", [sys.executable, "-c", "import time; time.sleep(60)"], limit_seconds=0.5)
MISSING_STAGE = Stage("absent", ["true"], needs=(program("no-such-program"),))


def test_a_stage_passes_or_fails_by_its_exit_code_and_its_last_line_is_kept() -> None:
    log = io.StringIO()
    assert (run_stage(GOOD, log).result, run_stage(BAD, log).result) == (PASSED, FAILED)
    assert run_stage(GOOD).remark == "all is well"
    assert "all is well" in log.getvalue()
    assert "oh no" in log.getvalue()


def test_a_stage_that_takes_too_long_is_stopped() -> None:
    outcome = run_stage(SLOW)
    assert outcome.result == LATE
    assert outcome.is_failure
    assert outcome.seconds < 30
    assert run_stage(GOOD, limit=0).result == LATE


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (program("no-such-program"), "no-such-program is not on the PATH"),
        (module("no_such_module"), "no_such_module is not installed"),
        (path("csrc/*.rs"), "there is no csrc"),
    ],
)
def test_what_cannot_run_is_named_and_fails_unless_it_is_optional(need, reason) -> None:  # type: ignore[no-untyped-def]
    required = run_stage(Stage("x", ["true"], needs=(need,)))
    optional = run_stage(Stage("x", ["true"], needs=(need,), optional=True))
    assert (required.result, optional.result) == (MISSING, MISSING)
    assert reason in required.remark
    assert required.is_failure
    assert not optional.is_failure


@pytest.mark.parametrize(("stages", "code"), [([GOOD], 0), ([BAD, GOOD], 1), ([MISSING_STAGE], 1)])
def test_verify_runs_all_stages_and_fails_on_any(
    stages: list[Stage], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.verify(stages) == code
    last = capsys.readouterr().out.splitlines()
    assert last[-1].startswith(f"{len(stages)} stages")
    for stage in stages:
        assert any(stage.name in line for line in last[-len(stages) - 2 :])


def test_verify_covers_rungs_3_to_7() -> None:
    assert {"3", "4", "5", "6", "7"} <= {stage.rung for stage in verify.STAGES}
    assert [stage.rung for stage in verify.STAGES if stage.optional] == ["6"]


def test_a_table_without_rungs_has_no_column_for_them() -> None:
    assert "rung" not in summary([run_stage(GOOD)])


@pytest.mark.parametrize(("stages", "code"), [([GOOD, GOOD], 0), ([BAD, GOOD], 1)])
def test_the_gpu_check_logs_everything_and_ends_with_the_table(
    stages: list[Stage], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.check(stages, tmp_path / "log.txt", ["a machine"]) == code
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "all is well" in log
    assert log.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_the_last_stage_keeps_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LIMIT_SECONDS", 20)
    greedy = Stage("greedy", SLOW.command, limit_seconds=100, optional=True)
    last = Stage("last", GOOD.command, limit_seconds=19.5)
    assert gpu_check.check([greedy, last], tmp_path / "log.txt", []) == 0


def test_the_stages_on_a_gpu_fit_into_eight_minutes(tmp_path: Path) -> None:
    stages = gpu_check.stages_with_gpu(tmp_path, "9.0")
    assert gpu_check.LIMIT_SECONDS < 8 * 60
    assert stages[-1].limit_seconds < gpu_check.LIMIT_SECONDS
    assert stages[0].environment["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_files_with_gpu_tests_are_found() -> None:
    found = gpu_check.gpu_tests()
    assert "tests/gpu/test_walk_on_gpu.py" in found
    assert "tests/gpu/test_registry_on_gpu.py" in found


def test_the_sources_are_importable_without_an_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    folders = gpu_check.environment_of_stages(tmp_path)["PYTHONPATH"].split(os.pathsep)
    code = "import importlib.metadata as m; print(m.version('nerve-kernels'))"
    # without site-packages, where it is installed
    stage = Stage("version", [sys.executable, "-S", "-c", code], environment={"PYTHONPATH": os.pathsep.join(folders)})
    outcome = run_stage(stage)
    assert outcome.result == PASSED
    assert outcome.remark[0].isdigit()


def row(operation: str, size: str, name: str, kind: str, median: float, bandwidth: str = "") -> dict[str, object]:
    columns = {"operation": operation, "size": size, "implementation": name, "kind": kind, "dtype": "float32"}
    return columns | {"sweep": "", "median_ms": str(median), "percent_of_bandwidth": bandwidth}


@pytest.mark.parametrize(("ours", "verdict"), [(0.05, "met"), (0.2, "MISSED")])
def test_expectations_are_judged_by_the_fastest_backend(ours: float, verdict: str) -> None:
    speed = next(e for e in EXPECTATIONS if e.name == "random_walk, 20 steps")
    dense = next(e for e in EXPECTATIONS if "cuBLAS" in e.name)
    rows = [
        row(speed.operation, speed.size, "triton", "ours", 0.5),
        row(speed.operation, speed.size, "cuda", "ours", ours),
        row(speed.operation, speed.size, "dense S in torch", "peer", 0.5),
    ]
    assert speed.row(rows)[1:] == (f"{1000 * ours:.3g} µs", "≤ 100 µs (stretch 60)", verdict)
    assert dense.row(rows)[3] == verdict
    half = [row | {"dtype": "float16"} for row in rows]
    assert speed.row(half)[1] == speed.row([])[1] == "not measured"


def test_points_of_a_sweep_are_no_evidence() -> None:
    dense = next(e for e in CPU_EXPECTATIONS if "dense" in e.name and e.wanted == 25)
    rows = [
        row(dense.operation, dense.size, "cpp", "ours", 10.0),
        row(dense.operation, dense.size, "dense S in torch", "peer", 240.0),
        row(dense.operation, dense.size, "cpp", "ours", 9.0) | {"sweep": "N"},
    ]
    assert dense.row(rows)[1:] == ("24 × its speed", "≥ 25 × its speed", "MISSED")


def test_expectations_name_cases_that_are_measured() -> None:
    from benchmarks.gpu_bench import CASES

    measured = {(operation.name, size.name, str(dtype).removeprefix("torch.")) for operation, size, dtype in CASES}
    for expectation in EXPECTATIONS:
        assert (expectation.operation, expectation.size, expectation.dtype) in measured
    on_cpu = {(case.operation.name, case.size.name) for case in catalog.cases()}
    for expectation in CPU_EXPECTATIONS:
        assert (expectation.operation, expectation.size) in on_cpu


def test_spills_are_found_in_what_ptxas_says() -> None:
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    spilled = "16 bytes stack frame, 24 bytes spill stores, 0 bytes spill loads"
    assert gpu_nvcc.spills(f"{clean}\n{spilled}\n{clean}") == [spilled]


def test_native_tests_are_those_of_the_compiled_backend() -> None:
    tests = verify_native.native_tests()
    assert "tests/ops/test_attention_cpp.py" in tests
    assert all("processes" not in test for test in tests)
