"""The registry on a GPU, against its peers there, with ceilings measured on the same GPU: part of ``make gpu-check``.

Every case is measured once before any is measured well, and what torch must compile first comes last. After each all
rows are in the CSV, so that whoever ends this loses the case under way and no other. Calls are replayed as graphs of
several: neither Python's share nor a launch is in anybody's time. ``--device cpu`` runs the same code at a small size
and expects nothing of its figures; ``--table FILE.csv`` prints what was measured so far, and the bars.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks import machine
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.expectations import ON_H100
from benchmarks.measure import FAULT, Contest
from benchmarks.operations import attention, sizes, statistics
from benchmarks.operations import walk as walking
from benchmarks.operations.registry import Case, Operation, Size
from benchmarks.rows import rows_of
from benchmarks.tables import aligned, read_rows, write_rows

ONCE_SECONDS, CASE_SECONDS, COMPILATION_SECONDS = 0.02, 0.4, 20.0
Rows = list[dict[str, Any]]
BenchCase = tuple[Operation, Size, torch.dtype]

# The bars first: what is left when time is up is named.
CASES: tuple[BenchCase, ...] = (
    (attention.ENTROPY, sizes.SD15_64, torch.float16),
    (walking.WALK, sizes.walk(64, 21), torch.float32),
    (attention.FUSE_MAPS, sizes.SD15_64, torch.float16),
    (attention.ENTROPY, sizes.SD15_64, torch.float32),
    (attention.ENTROPY, sizes.TWENTY_HEADS_64, torch.float16),
    (attention.ENTROPY, sizes.PIXART_64, torch.bfloat16),
    (attention.ENTROPY, sizes.FLUX_64, torch.bfloat16),
    (walking.WALK, sizes.walk(64, 171), torch.float32),
    (walking.WALK, sizes.walk(128, 150, 32), torch.float32),
    (statistics.ONE_LOOK, sizes.SD15_64, torch.float16),
    (attention.LOCAL, sizes.SD15_64, torch.float16),
    (attention.GLOBAL, sizes.SD15_64, torch.float16),
    (attention.MARGINAL, sizes.SD15_64, torch.float16),
    (attention.FUSE, sizes.SD15_64, torch.float16),
    (attention.MAP_ENTROPY, sizes.SD15_64, torch.float16),
    (walking.WALK, sizes.walk(256, 19, 32), torch.float32),
    (walking.WALK, sizes.walk(64, 21, batch=8), torch.float32),
    (walking.WALK, sizes.walk(64, 847), torch.float32),
    (walking.BFLOAT16_WALK, sizes.walk(128, 150, 32), torch.float32),
    (walking.LOCAL_WALK, sizes.walk(64, 21), torch.float32),
    (walking.PRODUCT, sizes.walk(64, 171), torch.float32),
    (attention.ENTROPY, sizes.SD21_96, torch.float16),
    (attention.ENTROPY, sizes.SDXL_64, torch.bfloat16),
    (attention.ENTROPY, sizes.SD15_32_BATCH_8, torch.float16),
    (statistics.ONE_LOOK, sizes.SD15_16_BATCH_32, torch.float16),
    (walking.WALK_GRADIENT, sizes.walk(64, 21), torch.float32),
    (walking.REFINE, sizes.SD15_64, torch.float32),
    (walking.LIMIT, sizes.walk(64, 21), torch.float32),
)


def label_of(case: BenchCase) -> str:
    """One line."""
    return f"{case[0].name} | {case[1].name} | {str(case[2]).removeprefix('torch.')}"


def without_compilation(operation: Operation) -> Operation:
    """The operation less the peers that torch must compile."""
    kept = tuple(peer for peer in operation.peers if not peer.full_only)
    names = [peer.name for peer in kept]
    return replace(operation, peers=kept, sweep_peers=tuple(n for n in operation.sweep_peers if n in names))


def compiled_only(operation: Operation, size: Size) -> Operation | None:
    """The operation against what torch compiles at this size, or None where there is no such peer."""
    there = (peer for peer in operation.peers if peer.full_only and "cuda" in peer.devices)
    kept = tuple(replace(peer, too_long=lambda size: False) for peer in there if not peer.too_long(size))
    return replace(operation, peers=kept, sweep_peers=(), baseline=kept[0].name) if kept else None


@dataclass
class Session:
    """What was measured so far, in ``out`` after every case."""

    device: str
    out: Path
    deadline: float
    cases: Sequence[BenchCase] = CASES
    small: Size = sizes.SMALL_IMAGE
    rows: dict[str, Rows] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    ceilings: dict[torch.dtype, Ceilings] = field(default_factory=dict)

    def run(self) -> None:
        """All cases once, then well, then against what torch compiles."""
        for dtype in dict.fromkeys(dtype for *_, dtype in self.cases):
            self.ceilings[dtype] = measure_ceilings(self.device, dtype)
            print(f"ceilings for {dtype}: {self.ceilings[dtype]}", flush=True)
        for case in self.cases:
            self._measure(case, without_compilation(case[0]), "once", ONCE_SECONDS)
        for case in self.cases:
            self._measure(case, without_compilation(case[0]), "well", CASE_SECONDS)
        compiled = [(case, found) for case in self.cases if (found := compiled_only(case[0], case[1])) is not None]
        for case, operation in compiled if self.device == "cuda" else compiled[:1]:  # a CPU takes long to compile
            self._measure(case, operation, "compiled", CASE_SECONDS)

    def _size(self, case: BenchCase) -> Size:
        return case[1] if self.device == "cuda" else self.small

    def _measure(self, case: BenchCase, operation: Operation, how: str, budget: float) -> None:
        label = label_of(case)
        left = self.deadline - time.monotonic()
        if left < (COMPILATION_SECONDS if how == "compiled" and self.device == "cuda" else 0):
            self.remarks.append(f"no time was left for {label}, {how}")
            return
        try:
            contest = Contest(
                Case(operation, self._size(case)),
                budget=budget if self.device == "cuda" else 0.001,
                device=self.device,
                dtype=case[2],
                in_graphs=True,
                min_rounds=1 if how == "once" else 3,
            )
            contest.run()
        except Exception as error:  # one case must not hide the others
            self.remarks.append(f"FAILED {label}, {how}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return
        state = machine.gpu_state(contest.ours.next_call) if self.device == "cuda" else {}
        found = [
            {**row, "baseline": case[0].baseline, "measured": how, **dict.fromkeys(machine.GPU_STATE, ""), **state}
            for row in rows_of(contest, self.ceilings[case[2]])
        ]
        self._keep(label, found, how)
        print(f"measured {how}: {label}", flush=True)
        if self.device == "cuda":
            del contest
            torch.cuda.empty_cache()

    def _keep(self, label: str, found: Rows, how: str) -> None:
        """In the place of what was measured of the case before; what torch compiled beside it."""
        if how == "compiled":
            self.rows[label] = self.rows.get(label, []) + [row for row in found if row["kind"] != "ours"]
        else:
            self.rows[label] = found
        faults = {f"FAILED {label}: {row['implementation']}: {row['missing']}" for row in found if is_fault(row)}
        self.remarks += sorted(faults - set(self.remarks))
        write_rows(self.out, self.all_rows())

    def all_rows(self) -> Rows:
        """In the order of the cases."""
        return [row for case in self.cases for row in self.rows.get(label_of(case), [])]


def is_fault(row: dict[str, Any]) -> bool:
    """Whether a contender that ought to be there is not."""
    return str(row["missing"]).startswith(FAULT)


def printed(rows: Iterable[dict[str, Any]]) -> str:
    """Every contender with time, memory, and its share of copy bandwidth, of the matrix product's rate and of exp's."""
    columns = ("operation", "size", "dtype", "contender", "ms", "calls a graph", "MiB", "% copy", "% matmul", "% exp")
    lines = [columns]
    for row in rows:
        if row["missing"]:
            continue
        shares = (row["percent_of_bandwidth"], row["percent_of_fma_peak"], row["percent_of_exp_rate"])
        in_graph = str(row["cuda_graph"]) == "True"
        lines.append(
            (
                *(str(row[name]) for name in ("operation", "size", "dtype", "implementation", "median_ms")),
                str(row["calls_per_timing"]) if in_graph else "",
                str(row["peak_extra_mib"]),
                *(f"{float(share):.1f}" if share else "" for share in shares),
            )
        )
    return aligned(lines)


def print_report(rows: Rows) -> None:
    """The table, who is missing, and the bars."""
    print(printed(rows))
    missing = sorted({f"{row['implementation']}: {row['missing']}" for row in rows if row["missing"]})
    print("\n".join(f"missing: {line}" for line in missing))
    verdicts = [expectation.row(rows) for expectation in ON_H100]
    print("\n" + aligned([("bar, for an H100", "measured", "wanted", "verdict"), *verdicts]))


def main() -> int:
    """1 where a case failed; a missed bar is shown and is no failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the CSV")
    parser.add_argument("--seconds", type=float, default=120, help="no case is begun after so many")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--table", type=Path, metavar="FILE.csv", help="measure nothing, print this")
    options = parser.parse_args()
    if options.table is not None:
        if not options.table.is_file():
            print(f"error: {options.table}: nothing was measured")
            return 1
        rows = read_rows(options.table)
        print_report(rows)
        print(f"{len(rows)} rows in {options.table}")
        return 0
    if options.out is None:
        parser.error("--out: expected the CSV to write")
    warnings.filterwarnings("ignore")
    session = Session(options.device, options.out, time.monotonic() + options.seconds)
    session.run()
    if rows := session.all_rows():
        print_report(rows)
    print("\n".join(session.remarks))
    failed = [remark for remark in session.remarks if remark.startswith("FAILED")]
    print(f"{len(rows)} rows in {options.out}, {len(failed)} failed")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
