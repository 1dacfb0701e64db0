"""Small mistakes made on purpose, one at a time: do the tests of their area notice?

``python -m tests.mutation --seed 0 --mutants 60`` draws lines that tests execute, makes one mistake in each, and runs
the area's tests until one fails: first those that execute the line, the quick ones before the slow. The same seed
draws the same mutants as long as the files are the same. Each survivor is printed; fewer caught than ``--least`` per
cent is failure.
"""

from __future__ import annotations

import argparse
import difflib
import json
import queue
import random
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .executed import (
    AREAS,
    PACKAGE,
    REPOSITORY,
    SOURCES,
    Executed,
    area_tests,
    copy_of_sources,
    executed_lines,
    preload,
    run_tests,
)
from .mutants import Mutant, mutants_of
from .order import BROWSER, ORDER, in_order

FOLDER = REPOSITORY / "build" / "mutants"


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a mutant, and the test that noticed it."""

    number: int
    mutant: Mutant
    outcome: str
    noticed_by: str = ""


def main() -> None:
    """Draw the mutants, run the tests on each, and say which survived."""
    options = _parser().parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    preload()
    executed = {}
    for area in options.areas:
        if (PACKAGE / area).is_dir() and (REPOSITORY / "tests" / area).is_dir():
            print(f"== {area}: which lines do its tests execute?", flush=True)
            executed[area] = executed_lines(area, FOLDER)
    drawn = draw([mutant for area in executed for mutant in candidates(executed[area])], options.mutants, options.seed)
    chosen = [number for number in range(len(drawn)) if options.only is None or number in options.only]
    print(f"== {len(chosen)} mutants, seed {options.seed}, {options.jobs} at a time", flush=True)
    verdicts = []
    for verdict in judge(drawn, chosen, executed, options.jobs):
        where = f"{verdict.mutant.file}:{verdict.mutant.line}"
        print(
            f"{verdict.number:3d}  {verdict.outcome:9s}  {verdict.mutant.operator:18s}  {where}  {verdict.noticed_by}",
            flush=True,
        )
        verdicts.append(verdict)
    survivors = [verdict for verdict in verdicts if verdict.outcome == "survived"]
    for verdict in sorted(survivors, key=lambda verdict: verdict.number):
        print(f"\n{verdict.number}: {verdict.mutant.operator}\n{difference(verdict.mutant)}")
    caught = len(verdicts) - len(survivors)
    share = 100 * caught / max(1, len(verdicts))
    print(f"\n{caught} of {len(verdicts)} caught ({share:.1f} %), {len(survivors)} survived")
    browser = sum(BROWSER in verdict.noticed_by for verdict in verdicts)
    print(f"{browser} of them by tests in a browser alone")
    sys.exit(share < options.least)


def candidates(executed: Executed) -> list[Mutant]:
    """The mutants of all lines that the tests execute."""
    found = []
    for file, lines in executed.lines.items():
        source = (SOURCES / file).read_text(encoding="utf-8")
        found += [mutant for mutant in mutants_of(source, file) if mutant.line in lines]
    return found


def draw(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many mutants, of different lines; a line with many possible mistakes is not likelier than another."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for mutant in sorted(mutants):
        by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    generator = random.Random(seed)
    lines = generator.sample(sorted(by_line), min(count, len(by_line)))
    return [generator.choice(by_line[line]) for line in lines]


def judge(drawn: list[Mutant], chosen: list[int], executed: dict[str, Executed], jobs: int) -> Iterator[Verdict]:
    """The verdicts, in the order of the draw."""
    copies: queue.Queue[Path] = queue.Queue()
    for i in range(jobs):
        copies.put(copy_of_sources(FOLDER / f"copy{i}"))

    def one(number: int) -> Verdict:
        sources = copies.get()
        try:
            return Verdict(number, drawn[number], *_outcome(drawn[number], executed, sources))
        finally:
            copies.put(sources)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, chosen)


def _outcome(mutant: Mutant, executed: dict[str, Executed], sources: Path) -> tuple[str, str]:
    area = Path(mutant.file).parts[1]
    path = sources / mutant.file
    source = path.read_text(encoding="utf-8")
    order = sources.with_suffix(".order")
    names = in_order(executed[area].durations, executed[area].lines[mutant.file][mutant.line])
    order.write_text(json.dumps(names), encoding="utf-8")
    limit = 120 + 4 * sum(executed[area].durations.values())
    path.write_text(mutant.applied(source), encoding="utf-8")
    try:
        code, printed = run_tests(area_tests(area), sources, limit, **{ORDER: str(order)})
        noticed_by = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, flags=re.MULTILINE)
        return {0: "survived", -1: "timed out"}.get(code, "caught"), noticed_by[1] if noticed_by else ""
    finally:
        path.write_text(source, encoding="utf-8")


def difference(mutant: Mutant) -> str:
    """The mutant as a diff, with the lines around it."""
    source = (SOURCES / mutant.file).read_text(encoding="utf-8")
    lines = difflib.unified_diff(
        source.splitlines(), mutant.applied(source).splitlines(), mutant.file, mutant.file, lineterm="", n=2
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=60, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=AREAS)
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (%(default)s)")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="of those drawn, by their numbers")
    parser.add_argument("--least", type=float, default=95.0, metavar="PERCENT", help="to be caught (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
