"""What a harness must notice: the walk with one thing broken in it, in a copy of its sources.

Compiled plainly, a wrong result in at least one of a few schedules is the detector: an emulated thread runs to its next
barrier before another is chosen, so that a thread which should have waited meets what is not yet written, NaN or old.
Under ThreadSanitizer the detector of a missing barrier is the report of a data race; a halo that is too small is no
race, and is seen by its result there too.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from .emulated_walk import HERE, SANITIZER, SOURCES, Case, compile_program, compiler, run, walk, write_problem
from .test_walk import SCHEDULES, TOLERANCE

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not installed")

SMALL = Case((16, 4), 5, 0.5, labels_per_lane=2, tile=(8, 4), window=(5, 5), cells=(4, 1))
CHUNKS = Case((13, 7), 5, 0.5, labels_per_lane=2, tile=(8, 8), cells=(9, 5), streamed_cells=32)
PARTS = Case((7, 4), 19, 0.5, labels_per_lane=2, tile=(8, 4))


@dataclass(frozen=True)
class Mutant:
    """``count`` occurrences of ``found`` in ``file``, replaced."""

    file: str
    found: str
    replacement: str
    case: Case = SMALL
    count: int = 1
    is_race: bool = True


MUTANTS = {
    "a removed __syncthreads": Mutant(
        "walk.cuh",
        "    __syncthreads();\n    combine(sums);",
        "    combine(sums);",
    ),
    "a removed grid barrier": Mutant(
        "walk.cuh",
        "    cooperative_groups::this_grid().sync();\n    block.step(step);",
        "    block.step(step);",
    ),
    "a halo one row short": Mutant(
        "tile.cuh",
        "min(walk.tile_height() + walk.radius_y(), walk.height - top)",
        "min(walk.tile_height() + walk.radius_y() - 1, walk.height - top)",
        is_race=False,
    ),
    "buffers not swapped": Mutant("tile.cuh", "(step & 1)", "(step & 0)", count=2),
}


def mutate(mutant: Mutant, directory: Path) -> Path:
    """A copy of the CUDA sources with the mutant in it."""
    copy = directory / "cuda"
    shutil.copytree(SOURCES, copy)
    text = (copy / mutant.file).read_text()
    assert text.count(mutant.found) == mutant.count, "the sources have changed: bring the mutant up to date"
    (copy / mutant.file).write_text(text.replace(mutant.found, mutant.replacement))
    return copy


def assert_caught(mutant: Mutant, directory: Path) -> None:
    program = compile_program(HERE / "walk_on_cpu.cpp", directory / "mutant", headers=mutate(mutant, directory))
    if SANITIZER == "thread" and mutant.is_race:
        write_problem(mutant.case, directory / "problem")
        finished = run(program, directory / "problem", directory / "result", 0)
        assert "ThreadSanitizer: data race" in finished.stderr
        return
    errors = [walk(program, mutant.case, seed, directory)[1] for seed in SCHEDULES]
    assert any(not error < 1e3 * TOLERANCE[mutant.case.seeds_dtype] for error in errors), errors


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, tmp_path: Path) -> None:
    assert_caught(MUTANTS[name], tmp_path)


BARRIER = re.compile(r"^ *(__syncthreads\(\)|cooperative_groups::this_grid\(\)\.sync\(\));\n", re.MULTILINE)
BARRIERS = [
    (file, index)
    for file in ("tile.cuh", "walk.cuh")
    for index in range(len(BARRIER.findall((SOURCES / file).read_text())))
]


@pytest.mark.skipif(SANITIZER != "thread", reason="compiles the walk once for each barrier; run by `make verify`")
@pytest.mark.parametrize(("file", "index"), BARRIERS)
def test_every_barrier_is_needed(file: str, index: int, tmp_path: Path) -> None:
    """Without any one of them, ThreadSanitizer names a race, or a wild access to what was not yet written."""
    copy = tmp_path / "cuda"
    shutil.copytree(SOURCES, copy)
    text = (copy / file).read_text()
    barrier = list(BARRIER.finditer(text))[index]
    (copy / file).write_text(text[: barrier.start()] + text[barrier.end() :])
    program = compile_program(HERE / "walk_on_cpu.cpp", tmp_path / "mutant", headers=copy)
    reports = ""
    for case in (SMALL, CHUNKS, PARTS):
        write_problem(case, tmp_path / "problem")
        reports += run(program, tmp_path / "problem", tmp_path / "result", 0).stderr
    assert re.search("ThreadSanitizer: (data race|SEGV)", reports)


@pytest.mark.skipif(not SANITIZER.startswith("address"), reason="needs AddressSanitizer; run by `make verify`")
def test_a_write_past_the_result_is_reported(tmp_path: Path) -> None:
    past = Mutant("walk.cuh", "|| first_label + label >= walk.labels) continue;", ") continue;")
    program = compile_program(HERE / "walk_on_cpu.cpp", tmp_path / "mutant", headers=mutate(past, tmp_path))
    write_problem(SMALL, tmp_path / "problem")
    assert "heap-buffer-overflow" in run(program, tmp_path / "problem", tmp_path / "result", 0).stderr


@pytest.mark.parametrize("case", [SMALL, CHUNKS, PARTS], ids=["small", "chunks", "parts"])
def test_the_cases_of_the_mutants_pass_unbroken(case: Case, walk_on_cpu: Path, tmp_path: Path) -> None:
    for seed in SCHEDULES:
        _, error = walk(walk_on_cpu, case, seed, tmp_path)
        assert error < TOLERANCE[case.seeds_dtype]
