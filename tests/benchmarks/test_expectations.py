"""Expectations are judged by the right rows, and name what is measured."""

from __future__ import annotations

import pytest
from benchmarks.expectations import ON_CPU, ON_H100
from benchmarks.gpu_bench import CASES
from benchmarks.operations import catalog
from benchmarks.operations.walk import BADDBMM


def row(operation: str, size: str, name: str, kind: str, median: float, bandwidth: str = "") -> dict[str, object]:
    columns = {"operation": operation, "size": size, "implementation": name, "kind": kind, "dtype": "float32"}
    return columns | {"sweep": "", "median_ms": str(median), "percent_of_bandwidth": bandwidth}


@pytest.mark.parametrize(("ours", "verdict"), [(0.05, "met"), (0.2, "MISSED")])
def test_expectations_are_judged_by_the_fastest_backend(ours: float, verdict: str) -> None:
    speed = next(e for e in ON_H100 if e.name == "random_walk, 20 steps")
    dense = next(e for e in ON_H100 if "dense" in e.name)
    rows = [
        row(speed.operation, speed.size, "triton", "ours", 0.5),
        row(speed.operation, speed.size, "cuda", "ours", ours),
        row(speed.operation, speed.size, BADDBMM.format("float32"), "peer", 0.5),
    ]
    assert speed.row(rows)[1:] == (f"{1000 * ours:.3g} µs", "≤ 100 µs (stretch 60)", verdict)
    assert dense.row(rows)[3] == verdict
    half = [row | {"dtype": "float16"} for row in rows]
    assert speed.row(half)[1] == speed.row([])[1] == "not measured"


def test_points_of_a_sweep_are_no_evidence() -> None:
    dense = next(e for e in ON_CPU if "dense" in e.name and e.wanted == 25)
    rows = [
        row(dense.operation, dense.size, "cpp", "ours", 10.0),
        row(dense.operation, dense.size, "dense S in torch", "peer", 240.0),
        row(dense.operation, dense.size, "cpp", "ours", 9.0) | {"sweep": "N"},
    ]
    assert dense.row(rows)[1:] == ("24 × its speed", "≥ 25 × its speed", "MISSED")


def test_expectations_name_cases_that_are_measured() -> None:
    measured = {(operation.name, size.name, str(dtype).removeprefix("torch.")) for operation, size, dtype in CASES}
    for expectation in ON_H100:
        assert (expectation.operation, expectation.size, expectation.dtype) in measured
    on_cpu = {(case.operation.name, case.size.name) for case in catalog.cases()}
    for expectation in ON_CPU:
        assert (expectation.operation, expectation.size) in on_cpu
