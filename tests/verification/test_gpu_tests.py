"""The GPU tests' runner: a test that hangs costs itself alone, and what ended is written whatever comes after."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from verification.checks import ROOT

TESTS = """
import time, pytest
pytestmark = [pytest.mark.gpu]
def test_good(): pass
def test_bad(): assert 1 == 2
def test_hangs(): time.sleep(100)
@pytest.mark.skip(reason="no GPU visible to torch")
def test_skipped(): ...
def test_after(): pass
"""


def run(tmp_path: Path, text: str, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """The runner on one file, and outcomes by test."""
    (tmp_path / "test_some.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "verification.gpu_tests", "--out", str(tmp_path), *options]
    command.append(str(tmp_path / "test_some.py"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    with (tmp_path / "tests.csv").open(encoding="utf-8", newline="") as stream:
        return finished, {row["test"].split("::")[-1]: row["outcome"] for row in csv.DictReader(stream)}


def test_a_test_that_hangs_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    finished, outcomes = run(tmp_path, TESTS, "--limit", "8", "--processes", "2")
    assert finished.returncode != 0
    assert outcomes == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_hangs": "failed",
        "test_skipped": "skipped",
        "test_after": "passed",
    }
    cases = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert {case.get("name") for case in cases} >= {"test_good", "test_bad", "test_hangs", "test_after"}


def test_all_well(tmp_path: Path) -> None:
    finished, outcomes = run(tmp_path, TESTS.split("def test_bad")[0], "--processes", "1")
    assert finished.returncode == 0, finished.stdout
    assert outcomes == {"test_good": "passed"}
