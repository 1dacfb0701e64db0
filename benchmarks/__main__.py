"""``python -m benchmarks run | table | plots | compare``: see benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare import DEFAULT_BOUND, compare
from benchmarks.tables import read_rows

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cpu.csv"
QUICK_RESULTS = HERE.parent / "build" / "benchmarks" / "quick.csv"


def run(options: argparse.Namespace) -> int:
    """Measure in a process of its own, whose libraries all start with the threads that are asked for."""
    rows: Path = options.out or (QUICK_RESULTS if options.quick or options.only else RESULTS)
    threads = str(options.threads)
    print(f"threads: {threads}; rows go to {rows}", flush=True)
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    # numpy's threads would spin for tens of milliseconds after their product, in the time of whoever comes next
    variables["OPENBLAS_THREAD_TIMEOUT"] = "4"
    command = [sys.executable, "-m", "pytest", "-q", str(HERE / "bench_operations.py"), "--benchmark-quiet"]
    command += ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "-p", "no:xdist"]
    command += ["-W", "ignore", "--rows", str(rows.resolve()), "--only", options.only]
    command += ["--quick"] if options.quick else []
    command += ["--longer", str(options.longer)]
    finished = subprocess.run(command, cwd=HERE.parent, env=os.environ | variables, check=False)
    if finished.returncode == 0 and not options.quick and not options.only:
        plots(argparse.Namespace(rows=rows, out=rows.parent))
    return finished.returncode


def table(options: argparse.Namespace) -> int:
    """Print a CSV as the table of its run."""
    from benchmarks.ceilings import Ceilings
    from benchmarks.expectations import ON_CPU
    from benchmarks.report import print_expectations, print_table

    rows = read_rows(options.rows)
    first = rows[0]
    rates = (float(first[name]) for name in ("peak_gflops", "peak_gbytes_per_s", "peak_gexps"))
    print_table(rows, Ceilings(*rates, source=first["peaks_from"]))
    if first["device"] == "cpu":
        print_expectations(rows, ON_CPU)
    return 0


def plots(options: argparse.Namespace) -> int:
    """Draw a CSV."""
    from benchmarks.plots import draw_all

    for path in draw_all(read_rows(options.rows), options.out):
        print(path)
    return 0


def gate(options: argparse.Namespace) -> int:
    """1 where ours lost against its baseline by more than the bound, or something is measured no more."""
    found = compare(read_rows(options.old), read_rows(options.new))
    for note in found.notes:
        print(f"note: {note}")
    if not found.changes:
        print("error: the two files have no case in common")
        return 1
    regressions = found.regressions(options.bound)
    for change in sorted(found.changes, key=lambda c: c.loss, reverse=True):
        mark = "SLOWER" if change in regressions else "ok"
        print(
            f"{mark:<7} {change.operation} | {change.size} | {change.backend}: {change.old:.2f} × → {change.new:.2f} × "
            f"the speed of {change.baseline}"
        )
    for name in found.lost:
        print(f"LOST    {name}: measured then, not now")
    print(
        f"{len(found.changes)} compared, {len(regressions)} slower by more than {options.bound:.2f} ×, "
        f"{len(found.lost)} lost"
    )
    return 1 if regressions or found.lost else 0


def bound(text: str) -> float:
    """A factor of at least 1."""
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a factor ≥ 1, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Microbenchmarks of nerve_kernels.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("run", help="measure on the CPU; writes CSV and plots, prints a table")
    command.add_argument("--quick", action="store_true", help="one size of each operation, under two minutes")
    command.add_argument("--only", default="", metavar="TEXT", help="operations whose name holds TEXT")
    command.add_argument("--longer", type=float, default=1, metavar="TIMES", help="more rounds, for a noisy machine")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    command.add_argument("--out", type=Path, help=f"the CSV (default {RESULTS.relative_to(HERE.parent)})")
    command.set_defaults(function=run)

    command = commands.add_parser("table", help="print a CSV")
    command.add_argument("rows", type=Path)
    command.set_defaults(function=table)

    command = commands.add_parser("plots", help="draw a CSV")
    command.add_argument("rows", type=Path)
    command.add_argument("--out", type=Path, default=RESULTS.parent, help="folder for the plots")
    command.set_defaults(function=plots)

    command = commands.add_parser("compare", help="exit 1 where ours became slower against its peers")
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    command.add_argument("--bound", type=bound, default=DEFAULT_BOUND, help="largest loss (default %(default)s)")
    command.set_defaults(function=gate)

    options = parser.parse_args(arguments)
    return int(options.function(options))


if __name__ == "__main__":
    sys.exit(main())
