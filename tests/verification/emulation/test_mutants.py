"""What a harness must notice: the walk with one thing broken in it, in a copy of its sources.

Compiled plainly, a wrong result in at least one of a few schedules is the detector: an emulated thread runs to its next
barrier before another is chosen, so that a thread which should have waited meets what is not yet written, NaN or old.
Under ThreadSanitizer the detector of a missing barrier is the report of a data race, in at least one of them: where a
block happens to wait until another is a step ahead, their accesses are in order. A halo that is too small is no race,
and is seen by its result there too.
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
LOOPED = Case((16, 4), 19, 0.5, labels_per_lane=2, tile=(8, 4), batch=2, affinity_batch=2, teams=2)


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
    "a team that does not wait": Mutant("walk.cuh", "      block.wait_for_team(round);\n", ""),
    "a team that waits for all of its blocks but one": Mutant(
        "tile.cuh",
        "(round + 1) * static_cast<uint32_t>(walk.num_tiles())",
        "(round + 1) * static_cast<uint32_t>(walk.num_tiles()) - 1",
    ),
    "rows divided before all parts are through": Mutant(
        "walk.cuh", "  cooperative_groups::this_grid().sync();\n", "", PARTS
    ),
    "a part that starts in the buffer in which the one before ended": Mutant(
        "tile.cuh", "(round & 1)", "(round % walk.steps & 1)", LOOPED, count=2
    ),
    "values and U of the image before": Mutant(
        "walk.cuh", "other_image = image != ", "other_image = image < ", LOOPED, is_race=False
    ),
    "a halo one row short": Mutant(
        "tile.cuh",
        "min(walk.tile_height() + walk.radius_y(), walk.height - top)",
        "min(walk.tile_height() + walk.radius_y() - 1, walk.height - top)",
        is_race=False,
    ),
    "buffers not swapped": Mutant("tile.cuh", "(round & 1)", "(round & 0)", count=2),
}


def compile_with(file: str, text: str, directory: Path) -> Path:
    """The walk of a copy of the CUDA sources in which ``file`` holds ``text``."""
    copy = directory / "cuda"
    shutil.copytree(SOURCES, copy)
    (copy / file).write_text(text)
    flag = "-DONLY_2_LABELS_PER_LANE"
    return compile_program(HERE / "walk_on_cpu.cpp", directory / "mutant", flag, headers=copy)


def compile_mutant(mutant: Mutant, directory: Path) -> Path:
    """The walk with the mutant in it."""
    text = (SOURCES / mutant.file).read_text()
    assert text.count(mutant.found) == mutant.count, "the sources have changed: bring the mutant up to date"
    return compile_with(mutant.file, text.replace(mutant.found, mutant.replacement), directory)


def race_is_reported(program: Path, case: Case, directory: Path) -> bool:
    """Whether ThreadSanitizer names a race, or a wild access to what was not yet written, in one of the schedules."""
    write_problem(case, directory / "problem")
    files = directory / "problem", directory / "result"
    report = re.compile("ThreadSanitizer: (data race|SEGV)")
    return any(report.search(run(program, *files, seed).stderr) for seed in SCHEDULES)


def assert_caught(mutant: Mutant, directory: Path) -> None:
    program = compile_mutant(mutant, directory)
    if SANITIZER == "thread" and mutant.is_race:
        assert race_is_reported(program, mutant.case, directory)
        return
    errors = [walk(program, mutant.case, seed, directory)[1] for seed in SCHEDULES]
    assert any(not error < 1e3 * TOLERANCE[mutant.case.seeds_dtype] for error in errors), errors


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, tmp_path: Path) -> None:
    assert_caught(MUTANTS[name], tmp_path)


BARRIER = re.compile(
    r"^ *(?:__syncthreads\(\)|cooperative_groups::this_grid\(\)\.sync\(\)|block\.wait_for_team\(round\));\n"
    r"|(?<=memory_order_)(?:release|acquire)",
    re.MULTILINE,
)
BARRIERS = [
    (file, index)
    for file in ("tile.cuh", "walk.cuh")
    for index in range(len(BARRIER.findall((SOURCES / file).read_text())))
]


@pytest.mark.skipif(SANITIZER != "thread", reason="compiles the walk once for each barrier; run by `make verify`")
@pytest.mark.parametrize(("file", "index"), BARRIERS)
def test_every_barrier_is_needed(file: str, index: int, tmp_path: Path) -> None:
    """Without any one of them, or with the counter in relaxed order, ThreadSanitizer names a race or a wild access."""
    text = (SOURCES / file).read_text()
    barrier = list(BARRIER.finditer(text))[index]
    without = "relaxed" if barrier[0] in ("release", "acquire") else ""
    program = compile_with(file, text[: barrier.start()] + without + text[barrier.end() :], tmp_path)
    assert any(race_is_reported(program, case, tmp_path) for case in (SMALL, CHUNKS, PARTS, LOOPED))


@pytest.mark.skipif(not SANITIZER.startswith("address"), reason="needs AddressSanitizer; run by `make verify`")
def test_a_write_past_the_result_is_reported(tmp_path: Path) -> None:
    past = Mutant("tile.cuh", "|| first_label + label >= walk.labels) continue;", ") continue;")
    program = compile_mutant(past, tmp_path)
    write_problem(SMALL, tmp_path / "problem")
    assert "heap-buffer-overflow" in run(program, tmp_path / "problem", tmp_path / "result", 0).stderr


@pytest.mark.parametrize("case", [SMALL, CHUNKS, PARTS, LOOPED], ids=["small", "chunks", "parts", "looped"])
def test_the_cases_of_the_mutants_pass_unbroken(case: Case, walk_on_cpu: Path, tmp_path: Path) -> None:
    for seed in SCHEDULES:
        _, error = walk(walk_on_cpu, case, seed, tmp_path)
        assert error < TOLERANCE[case.seeds_dtype]
