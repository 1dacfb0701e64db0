"""One benchmark for each case of the registry: ``make bench``, ``make bench-quick``.

pytest-benchmark times our best backend; between its rounds, in the setup that it does not time, every other contender
is timed once. The rows go to the session, which writes table, CSV and plots when it ends (conftest.py).
"""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.measure import Contest
from benchmarks.operations.registry import Call, Case
from benchmarks.rows import Recorder, rows_of


def bench_case(benchmark: Any, case: Case, recorder: Recorder) -> None:
    contest = Contest(case, budget=recorder.budget(case))
    turns = itertools.count()

    def setup() -> tuple[tuple[Call], dict[str, Any]]:
        turn = next(turns)
        contest.time_others(turn)
        return (contest.ours.calls[turn % len(contest.ours.calls)],), {}

    benchmark.group = case.operation.name
    benchmark.pedantic(lambda call: call(), setup=setup, rounds=contest.rounds)
    contest.ours.times = [1e3 * seconds for seconds in benchmark.stats.stats.data]
    recorder.add(rows_of(contest, recorder.ceilings))
