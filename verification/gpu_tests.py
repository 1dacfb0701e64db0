"""The tests marked ``gpu``, in parallel, a limit each, with JUnit XML and a line for each as soon as it has ended.

A test that hangs in the driver hears no Python: past its limit a watchdog ends its process with a traceback, the other
processes go on, and another takes its place. ``tests.csv`` has every outcome so far whatever becomes of this process.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from verification.checks import ROOT

MARKED = re.compile(r"^(?:@|\s+|pytestmark = )pytest\.mark\.gpu\b", re.MULTILINE)
LIMIT = "NERVE_TEST_LIMIT_SECONDS"
MAX_PROCESSES = 8  # each holds a context of the GPU


def gpu_tests() -> list[str]:
    """Files with a test marked ``gpu``: others may need packages that this machine does not have."""
    files = sorted(ROOT.glob("tests/**/test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if MARKED.search(file.read_text("utf-8"))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """In each process that tests: its watchdog."""
    faulthandler.dump_traceback_later(float(os.environ[LIMIT]), exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class Outcomes:
    """In the process that collects them: every outcome, written when it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("test,outcome,seconds,message\n", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line for a test; a set-up that went well is not the end of it."""
        if report.when != "call" and report.outcome == "passed":
            return
        message = report.longreprtext.strip().splitlines()[-1:] or [""]
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            row = (report.nodeid, report.outcome, f"{report.duration:.2f}", message[0])
            csv.writer(stream, lineterminator="\n").writerow(row)


def arguments(folder: Path, files: list[str], processes: int) -> list[str]:
    """pytest's, on one process where xdist is missing."""
    options = ["-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "-p", "verification.gpu_tests"]
    options += ["-o", "minversion=7.0"]
    options += ["--junitxml", str(folder / "junit.xml"), "--durations=10"]
    if importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(processes), "--dist", "worksteal"]
    return [*options, *files]


def main() -> int:
    """pytest's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for junit.xml and tests.csv")
    parser.add_argument("--limit", type=float, default=40, help="seconds of one test")
    parser.add_argument("--processes", type=int, default=min(MAX_PROCESSES, os.cpu_count() or 1))
    parser.add_argument("files", nargs="*", help="in the place of all that have tests marked gpu")
    options = parser.parse_args()
    os.environ[LIMIT] = str(options.limit)
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = Outcomes(options.out / "tests.csv")
    code = pytest.main(arguments(options.out, options.files or gpu_tests(), options.processes), plugins=[outcomes])
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
