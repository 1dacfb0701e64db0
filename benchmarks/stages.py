"""Named stages, each one command: run in order, streamed to the terminal and a log, and told in one table at the end.

Needs nothing but Python, so that it can say what is missing where nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
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
class Stage:
    """One command. ``optional``: that it cannot run here, or not in time, is said and is no failure."""

    name: str
    command: Sequence[str]
    rung: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    needs: Sequence[Callable[[], str | None]] = ()
    optional: bool = False
    limit_seconds: float = 3600

    def reason_against(self) -> str | None:
        """Why it cannot run here, or None where it can."""
        return next((reason for need in self.needs if (reason := need()) is not None), None)


@dataclass(frozen=True)
class Outcome:
    """What became of one stage."""

    stage: Stage
    result: str
    seconds: float
    remark: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether the whole must not pass."""
        return self.result == FAILED or (self.result in (MISSING, LATE) and not self.stage.optional)


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is their names."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _stream(source: IO[str], sinks: Sequence[IO[str]], kept: list[str]) -> None:
    for line in source:
        kept.append(line)
        del kept[:-200]
        for sink in sinks:
            sink.write(line)
            sink.flush()


def run_stage(stage: Stage, log: IO[str] | None = None, limit: float | None = None) -> Outcome:
    """Run one stage and see what became of it; its last line is the remark."""
    reason = stage.reason_against()
    if reason is not None:
        return Outcome(stage, MISSING, 0, reason)
    seconds = min(stage.limit_seconds, limit if limit is not None else stage.limit_seconds)
    if seconds <= 0:
        return Outcome(stage, LATE, 0, "no time was left for it")
    sinks = [sys.stdout, *([log] if log else [])]
    for sink in sinks:
        sink.write(f"\n== {stage.name}\n")
        sink.flush()
    start, kept = time.monotonic(), list[str]()
    process = subprocess.Popen(
        stage.command,
        cwd=ROOT,
        env=os.environ | stage.environment,
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
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return Outcome(stage, LATE, time.monotonic() - start, f"after {seconds:.0f} s")
    reader.join(5)
    remark = next((line.strip(" =\n") for line in reversed(kept) if line.strip(" =\n")), "")
    return Outcome(stage, FAILED if code else PASSED, time.monotonic() - start, remark[:100])


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table at the end."""
    rows = [("rung", "stage", "result", "seconds", "remark")]
    rows += [(o.stage.rung, o.stage.name, o.result, f"{o.seconds:.0f}", o.remark) for o in outcomes]
    if not any(outcome.stage.rung for outcome in outcomes):
        rows = [row[1:] for row in rows]  # type: ignore[misc]
    return table(rows)
