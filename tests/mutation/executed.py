"""Which lines of an area the area's tests execute, and which tests do."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
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
    "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line",
    "-p", "tests.mutation.order",
    "-o", f"faulthandler_timeout={SECONDS_A_TEST}", "-o", "faulthandler_exit_on_timeout=true",
]  # fmt: skip


SETTINGS = {
    "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}  # fmt: skip
# of a package that loads its parts when they are asked for, those that are asked for
LIBRARIES = (
    "pytest", "torch", "typer", "rich.progress", "PIL.Image", "hypothesis", "matplotlib.pyplot", "scipy.io",
    "torchmetrics",
    "gradio", "diffusers:AutoencoderKL", "diffusers:DDPMScheduler", "diffusers:UNet2DConditionModel",
    "diffusers:PNDMScheduler", "transformers:CLIPModel", "transformers:CLIPTextModel", "transformers:CLIPTokenizer",
    "transformers.models.clip.image_processing_pil_clip:CLIPImageProcessorPil",
)  # fmt: skip


# Coverage cannot write its own file there either, and says so. They run on mutants, after those that are known.
DISTURBED = ["tests/cli/test_failures.py::test_a_write_that_fails_half_way_leaves_nothing"]


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


def preload() -> None:
    """Import what the areas' tests import besides the package, so that the forked runs need not do so again."""
    os.environ.update(SETTINGS)
    for name in LIBRARIES:
        module, _, attribute = name.partition(":")
        with contextlib.suppress(ImportError, AttributeError):
            getattr(importlib.import_module(module), attribute or "__name__")
    gc.freeze()  # collecting would copy what is shared


def run_tests(arguments: list[str], sources: Path, limit: float, **variables: str) -> tuple[int, str]:
    """Run pytest on a copy of the sources, in a forked process.

    Returns:
        Its exit code, or -1 when it took longer than `limit` seconds; and what it printed.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _run_forked([*PYTEST, *arguments], sources, output.fileno(), variables)
            finally:
                os._exit(code)
        end = time.monotonic() + limit
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.05)
        # with everything that it has started, which may outlive it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if ended[0] == 0:
            os.waitpid(child, 0)
            return -1, f"longer than {limit:.0f} s"
        output.seek(0)
        return abs(os.waitstatus_to_exitcode(ended[1])), output.read()


def _run_forked(arguments: list[str], sources: Path, output: int, variables: dict[str, str]) -> int:
    import pytest

    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.chdir(REPOSITORY)
    os.environ.update(SETTINGS | {"PYTHONPATH": str(sources)} | variables)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(sources))
    assert not any(name.partition(".")[0] == "nerve_kernels" for name in sys.modules)
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    return code


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
    covering += [f"--deselect={test}" for test in DISTURBED]
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
