"""What a benchmark session starts with and ends with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import report
from benchmarks.ceilings import measure_ceilings
from benchmarks.expectations import ON_CPU
from benchmarks.operations import catalog
from benchmarks.rows import Recorder
from benchmarks.tables import write_rows


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("registry", "microbenchmarks of the registry")
    group.addoption("--quick", action="store_true", help="one or two sizes of each operation, shorter")
    group.addoption("--only", default="", metavar="TEXT", help="operations whose name holds TEXT")
    group.addoption("--longer", type=float, default=1, metavar="TIMES", help="that many times as many rounds")
    group.addoption("--rows", type=Path, metavar="FILE", help="where the CSV goes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        options = metafunc.config.option
        found = catalog.cases(quick=options.quick, only=options.only)
        metafunc.parametrize(
            "case", found, ids=[f"{case.name}{case.sweep and f' over {case.sweep}'}" for case in found]
        )


@pytest.fixture(scope="session")
def recorder(pytestconfig: pytest.Config) -> Iterator[Recorder]:
    """Collects rows; writes and prints them when the session is over, a failed one's too."""
    warnings.filterwarnings("ignore", message="Sparse")  # torch's own remarks about its CSR tensors
    options = pytestconfig.option
    recorder = Recorder(measure_ceilings("cpu"), quick=options.quick, longer=options.longer)
    yield recorder
    if recorder.rows and pytestconfig.option.rows is not None:
        write_rows(pytestconfig.option.rows, recorder.rows)
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        report.print_table(recorder.rows, recorder.ceilings)
        report.print_expectations(recorder.rows, ON_CPU)


def pytest_report_header() -> list[str]:
    return [f"threads: {torch.get_num_threads()}, fixed for every contender"]
