"""The checks of make verify and make gpu-check: what fails, what is named, what may be missing."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from verification import native, nvcc
from verification.__main__ import CHECKS
from verification.checks import FAILED, LATE, MISSING, PASSED, Check, module, path, program, run_all, run_check, summary

GOOD = Check("good", [sys.executable, "-c", "print('all is well')"])
BAD = Check("bad", [sys.executable, "-c", "print('oh no'); raise SystemExit(3)"])
SLOW = Check("slow", [sys.executable, "-c", "import time; time.sleep(60)"], limit_seconds=0.5)
MISSING_CHECK = Check("absent", ["true"], needs=(program("no-such-program"),))


def test_a_check_passes_or_fails_by_its_exit_code_and_its_last_line_is_kept() -> None:
    log = io.StringIO()
    assert (run_check(GOOD, log).result, run_check(BAD, log).result) == (PASSED, FAILED)
    assert run_check(GOOD).remark == "all is well"
    assert "all is well" in log.getvalue()
    assert "oh no" in log.getvalue()


def test_a_check_that_takes_too_long_is_stopped() -> None:
    outcome = run_check(SLOW)
    assert outcome.result == LATE
    assert outcome.is_failure
    assert outcome.seconds < 30
    assert run_check(GOOD, limit=0).result == LATE


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (program("no-such-program"), "no-such-program is not on the PATH"),
        (module("no_such_module"), "no_such_module is not installed"),
        (path("csrc/*.rs"), "there is no csrc"),
    ],
)
def test_what_cannot_run_is_named_and_fails_unless_it_is_optional(need, reason) -> None:  # type: ignore[no-untyped-def]
    required = run_check(Check("x", ["true"], needs=(need,)))
    optional = run_check(Check("x", ["true"], needs=(need,), optional=True))
    assert (required.result, optional.result) == (MISSING, MISSING)
    assert reason in required.remark
    assert required.is_failure
    assert not optional.is_failure


@pytest.mark.parametrize(("checks", "code"), [([GOOD], 0), ([BAD, GOOD], 1), ([MISSING_CHECK], 1)])
def test_all_checks_run_and_any_failure_fails(
    checks: list[Check], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(checks) == code
    last = capsys.readouterr().out.splitlines()
    assert last[-1].startswith(f"{len(checks)} checks")
    for check in checks:
        assert any(check.name in line for line in last[-len(checks) - 2 :])


def test_verify_covers_rungs_3_to_7() -> None:
    assert {"3", "4", "5", "6", "7"} <= {check.rung for check in CHECKS}
    optional = [check.rung for check in CHECKS if check.optional]
    assert optional == ["3", "5", "5", "5", "6", "7", "7"]  # without network, without ttsem


def test_every_check_stands_on_a_rung_of_the_ladder() -> None:
    ladder = (Path(__file__).parents[2] / "verification" / "README.md").read_text(encoding="utf-8")
    rungs = re.findall(r"^\| (\d) \|", ladder, re.MULTILINE)
    assert rungs == [str(number) for number in range(1, 9)]
    assert {check.rung for check in CHECKS} <= {*rungs}


def test_a_table_without_rungs_has_no_column_for_them() -> None:
    assert "rung" not in summary([run_check(GOOD)])


@pytest.mark.parametrize(("checks", "code"), [([GOOD, GOOD], 0), ([BAD, GOOD], 1)])
def test_the_log_has_everything_and_ends_with_the_table(
    checks: list[Check], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(checks, header=["a machine"], log_path=tmp_path / "log.txt") == code
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "all is well" in log
    assert log.count("a machine") == 2
    assert log.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_the_last_check_keeps_its_time() -> None:
    greedy = Check("greedy", SLOW.command, limit_seconds=100, optional=True)
    last = Check("last", GOOD.command, limit_seconds=19.5)
    assert run_all([greedy, last], limit=20) == 0


def test_spills_are_found_in_what_ptxas_says() -> None:
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    spilled = "16 bytes stack frame, 24 bytes spill stores, 0 bytes spill loads"
    assert nvcc.spills(f"{clean}\n{spilled}\n{clean}") == [spilled]


def test_native_tests_are_those_of_the_compiled_backend() -> None:
    tests = native.native_tests()
    assert "tests/ops/test_attention_cpp.py" in tests
    assert all("processes" not in test for test in tests)
