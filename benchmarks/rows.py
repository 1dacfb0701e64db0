"""A contest as rows of the CSV, one for each contender, present or missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from benchmarks import machine
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Contender, Contest
from benchmarks.operations.registry import Case

Row = dict[str, Any]

FULL_BUDGET, QUICK_BUDGET, SWEEP_BUDGET = 3.5, 1.5, 1.0
"""Seconds of timed calls for one case."""


@dataclass
class Recorder:
    """What a session has measured so far."""

    ceilings: Ceilings
    quick: bool
    longer: float = 1
    rows: list[Row] = field(default_factory=list)

    def budget(self, case: Case) -> float:
        """Seconds of timed calls that a case may take."""
        usual = SWEEP_BUDGET if case.sweep else QUICK_BUDGET if self.quick else FULL_BUDGET
        return usual * self.longer

    def add(self, rows: list[Row]) -> None:
        """Keep the rows of one contest."""
        self.rows += rows


def percentile(times: list[float], percent: float) -> float:
    """By linear interpolation; 50 is the median."""
    position = percent / 100 * (len(times) - 1)
    below, ordered = math.floor(position), sorted(times)
    above = min(below + 1, len(times) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def rows_of(contest: Contest, ceilings: Ceilings) -> list[Row]:
    """Rows of one finished contest: contenders in their order, then the missing."""
    case, size = contest.case, contest.case.size
    common: Row = {
        "operation": case.operation.name,
        "size": size.name,
        "sweep": case.sweep,
        "batch": size.batch,
        "heads": size.heads,
        "head_size": size.head_size,
        "height": size.grid[0],
        "width": size.grid[1],
        "labels": size.labels,
        "window": size.window,
        "cells": size.cells,
        "steps": size.steps,
        "dtype": str(contest.dtype).removeprefix("torch."),
    }
    described = machine.description(contest.device) | {
        "peak_gflops": f"{ceilings.gflops:.0f}",
        "peak_gbytes_per_s": f"{ceilings.gbytes:.1f}",
        "peak_gexps": f"{ceilings.gexps:.2f}",
        "peaks_from": ceilings.source,
    }
    rows = [common | _figures(contest, contender, ceilings) | described for contender in contest.contenders]
    empty = dict.fromkeys(_figures(contest, contest.ours, ceilings), "")
    for name, (kind, reason) in contest.missing.items():
        rows.append(common | empty | {"implementation": name, "kind": kind, "missing": reason} | described)
    return rows


def _figures(contest: Contest, contender: Contender, ceilings: Ceilings) -> Row:
    operation, work = contest.case.operation, contest.case.operation.work(contest.case.size)
    median = percentile(contender.times, 50)
    row: Row = {
        "implementation": contender.name,
        "kind": contender.kind,
        "same_result": contender.same_result,
        "baseline": operation.baseline,
        "median_ms": f"{median:.4g}",
        "p20_ms": f"{percentile(contender.times, 20):.4g}",
        "p80_ms": f"{percentile(contender.times, 80):.4g}",
        "rounds": len(contender.times),
        "copies": contender.copies,
        "cuda_graph": contender.in_graph if contest.device == "cuda" else "",
        "calls_per_timing": contender.calls_per_timing,
        "peak_extra_mib": "" if contender.peak_bytes is None else f"{contender.peak_bytes / 2**20:.1f}",
    }
    seconds = 1e-3 * median
    # declared for float32; what stays float32 whatever the inputs are makes this a lower bound
    least_bytes = work.bytes * contest.dtype.itemsize // 4
    rates = {
        "gbytes_per_s": least_bytes / seconds / 1e9,
        "gflops": work.operations / seconds / 1e9,
        **ceilings.percent(
            bytes=least_bytes, operations=work.operations, exponentials=work.exponentials, seconds=seconds
        ),
    }
    # the least work of the operation says nothing about a contender that computes something else
    row |= {name: f"{value:.4g}" if contender.same_result and value else "" for name, value in rates.items()}
    return row | {"missing": ""}
