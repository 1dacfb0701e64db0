"""Which lines of an area the area's tests execute, and which tests do."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .order import DURATIONS

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "src"
PACKAGE = SOURCES / "nerve_kernels"
AREAS = ("segmentation", "evaluation", "web", "cli")
SECONDS_A_TEST = 360

# A test that hangs is ended with its process, and so counts as one that noticed.
PYTEST = [
    sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line",
    "-p", "tests.mutation.order",
    "-o", f"faulthandler_timeout={SECONDS_A_TEST}", "-o", "faulthandler_exit_on_timeout=true",
]  # fmt: skip


@dataclass(frozen=True)
class Executed:
    """What a run of an area's tests found.

    Args:
        lines: by file (relative to ``src``) and line, the tests that execute it; none where it is executed on import.
        durations: of every test, in seconds.
    """

    lines: dict[str, dict[int, list[str]]]
    durations: dict[str, float]


def area_tests(area: str) -> list[str]:
    """pytest's arguments for all tests of an area; those in a browser only where there is one."""
    chromium = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    browser = chromium and importlib.util.find_spec("playwright") is not None
    return ["-m", "not gpu" if browser else "not gpu and not browser", f"tests/{area}"]


def run_tests(arguments: list[str], sources: Path, limit: float, **variables: str) -> tuple[int, str]:
    """Run pytest on a copy of the sources.

    Returns:
        Its exit code, or -1 when it took longer than `limit` seconds; and what it printed.
    """
    environment = os.environ | {
        "PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    } | variables  # fmt: skip
    with subprocess.Popen(
        [*PYTEST, *arguments], cwd=REPOSITORY, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=limit)
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            return -1, f"longer than {limit:.0f} s"
        finally:
            # with everything that it has started, which may outlive it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def copy_of_sources(folder: Path) -> Path:
    """A copy of the package to break."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def executed_lines(area: str, folder: Path) -> Executed:
    """Run an area's tests under coverage, unless they were run on the same files before.

    Raises:
        SystemExit: a test fails without any mutant.
    """
    kept = folder / f"{area}-{_digest(area)}.json"
    if kept.exists():
        content = json.loads(kept.read_text(encoding="utf-8"))
        lines = {file: {int(line): tests for line, tests in by.items()} for file, by in content["lines"].items()}
        return Executed(lines, content["durations"])
    sources = copy_of_sources(folder / "covered")
    data = folder / f"{area}.coverage"
    settings = folder / "coveragerc"
    source = sources / "nerve_kernels" / area
    settings.write_text(f"[run]\ndata_file = {data}\nsource = {source}\npatch =\n    subprocess\n    fork\n")
    durations = folder / f"{area}.durations"
    covering = ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report="]
    code, printed = run_tests([*covering, *area_tests(area)], sources, 3600, **{DURATIONS: str(durations)})
    if code != 0:
        sys.exit(f"tests/{area} fail without any mutant:\n{printed}")
    executed = Executed(_read(data, sources), json.loads(durations.read_text(encoding="utf-8")))
    kept.write_text(json.dumps({"durations": executed.durations, "lines": executed.lines}), encoding="utf-8")
    return executed


def _read(data: Path, sources: Path) -> dict[str, dict[int, list[str]]]:
    from coverage import CoverageData

    found = CoverageData(str(data))
    found.read()
    lines = {}
    for file in sorted(found.measured_files()):
        by_line = found.contexts_by_lineno(file)
        lines[str(Path(file).relative_to(sources))] = {
            line: sorted({context.rpartition("|")[0] for context in contexts if "|" in context})
            for line, contexts in sorted(by_line.items())
        }
    return lines


def _digest(area: str) -> str:
    digest = hashlib.sha256(repr(area_tests(area)).encode())
    for folder in (PACKAGE, REPOSITORY / "tests" / area):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(REPOSITORY)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
