"""Named checks, each one command: run in order, streamed to the terminal and a log, and told in one table at the end.

Needs nothing but Python, so that it can say what is missing where nothing is installed.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.tables import aligned

ROOT = Path(__file__).parent.parent
UNAVAILABLE = 77
"""Exit code of a check that finds out itself that it cannot run here; its last line says why."""
PASSED, FAILED, MISSING, LATE = "passed", "FAILED", "not run", "TIMED OUT"


def program(name: str) -> Callable[[], str | None]:
    """Needs a program on the PATH."""
    return lambda: None if shutil.which(name) else f"{name} is not on the PATH"


def module(name: str) -> Callable[[], str | None]:
    """Needs an importable module."""
    return lambda: None if importlib.util.find_spec(name) else f"the Python package {name} is not installed"


def path(pattern: str) -> Callable[[], str | None]:
    """Needs a file of this repository."""
    return lambda: None if any(ROOT.glob(pattern)) else f"there is no {pattern} in this checkout"


@dataclass(frozen=True)
class Check:
    """One command. ``optional``: that it cannot run here, or not in time, is said and is no failure.

    So many seconds before it would be killed, ``grace_seconds``, it is interrupted and can write what it has.
    """

    name: str
    command: Sequence[str]
    rung: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    needs: Sequence[Callable[[], str | None]] = ()
    optional: bool = False
    limit_seconds: float = 3600
    grace_seconds: float = 0

    def why_not_here(self) -> str | None:
        """Why it cannot run here, or None where it can."""
        return next((reason for need in self.needs if (reason := need()) is not None), None)


@dataclass(frozen=True)
class Outcome:
    """What became of one check."""

    check: Check
    result: str
    seconds: float
    remark: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether the whole must not pass."""
        return self.result == FAILED or (self.result in (MISSING, LATE) and not self.check.optional)


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


def _stream(source: IO[str], sinks: Sequence[IO[str]], kept: list[str]) -> None:
    for line in source:
        kept.append(line)
        del kept[:-200]
        for sink in sinks:
            sink.write(line)
            sink.flush()


def run_check(check: Check, log: IO[str] | None = None, limit: float = math.inf) -> Outcome:
    """Run one check and see what became of it; its last line is the remark."""
    reason = check.why_not_here()
    if reason is not None:
        return Outcome(check, MISSING, 0, reason)
    seconds = min(check.limit_seconds, limit)
    if seconds <= 0:
        return Outcome(check, LATE, 0, "no time was left for it")
    sinks = [sys.stdout, *([log] if log else [])]
    for sink in sinks:
        sink.write(f"\n== {check.name}\n")
        sink.flush()
    start, kept = time.monotonic(), list[str]()
    process = subprocess.Popen(
        check.command,
        cwd=ROOT,
        env=os.environ | check.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_stream, args=(process.stdout, sinks, kept), daemon=True)
    reader.start()
    try:
        code = process.wait(max(0.0, seconds - check.grace_seconds))
    except subprocess.TimeoutExpired:
        with suppress(subprocess.TimeoutExpired):
            if check.grace_seconds:  # what it has so far can still be written
                os.kill(process.pid, signal.SIGINT)
                process.wait(min(check.grace_seconds, seconds))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome(check, LATE, time.monotonic() - start, f"after {seconds:.0f} s")
    reader.join(5)
    remark = next((line.strip(" =\n") for line in reversed(kept) if line.strip(" =\n")), "")
    result = {0: PASSED, UNAVAILABLE: MISSING}.get(code, FAILED)
    return Outcome(check, result, time.monotonic() - start, remark[:100])


def run_all(
    checks: Sequence[Check], *, header: Sequence[str] = (), log_path: Path | None = None, limit: float = math.inf
) -> int:
    """Run every check, whatever the others do, within so many seconds; the table comes last. 1 where any failed."""
    deadline = time.monotonic() + limit
    with log_path.open("w", encoding="utf-8") if log_path else nullcontext() as log:
        sinks = [sys.stdout, *([log] if log else [])]
        for sink in sinks:
            sink.writelines(line + "\n" for line in header)
        outcomes = []
        for check in checks:
            # the last one keeps its time whatever the others take
            reserved = 0.0 if check is checks[-1] else checks[-1].limit_seconds
            outcomes.append(run_check(check, log, deadline - time.monotonic() - reserved))
        failures = sum(outcome.is_failure for outcome in outcomes)
        where = [f"log and results: {log_path.parent}"] if log_path else []
        last = f"{len(outcomes)} checks, {failures or 'none'} failed or could not run"
        for sink in sinks:
            sink.write("\n" + "\n".join([*header, "", summary(outcomes), "", *where, last]) + "\n")
    return 1 if failures else 0


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table at the end."""
    rows = [("rung", "check", "result", "seconds", "remark")]
    rows += [(o.check.rung, o.check.name, o.result, f"{o.seconds:.0f}", o.remark) for o in outcomes]
    if not any(outcome.check.rung for outcome in outcomes):
        rows = [row[1:] for row in rows]  # type: ignore[misc]
    return aligned(rows)
