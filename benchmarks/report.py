"""The rows as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.expectations import Expectation
from rich.console import Console
from rich.table import Table

Rows = Sequence[dict[str, Any]]
PERCENTS = {"percent_of_fma_peak": "FMA", "percent_of_bandwidth": "read", "percent_of_exp_rate": "exp"}


def nearest_ceiling(row: dict[str, Any]) -> str:
    """The ceiling that a row comes closest to, with its percentage."""
    found = {name: float(row[column]) for column, name in PERCENTS.items() if row[column]}
    if not found:
        return ""
    name = max(found, key=lambda key: found[key])
    return f"{found[name]:.0f} % {name}"


def milliseconds(row: dict[str, Any]) -> float:
    """Its median."""
    return float(row["median_ms"])


def ratio(row: dict[str, Any], ours: dict[str, Any]) -> str:
    """How many times longer than our best."""
    return "" if row is ours else f"{milliseconds(row) / milliseconds(ours):.2f} ×"


def grouped(rows: Rows) -> list[list[dict[str, Any]]]:
    """Rows of one case together, in the order measured."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["operation"], row["size"], row["sweep"]), []).append(row)
    return list(groups.values())


def print_table(rows: Rows, ceilings: Ceilings) -> None:
    """Every case that is no point of a sweep; the missing are named below it."""
    if not rows:
        return
    first, console = rows[0], Console(width=170)
    table = Table("operation", "size", "contender", "median ms", "p20 – p80", "against ours", "MiB", "of the machine's")
    missing: dict[str, set[str]] = {}
    for group in grouped(rows):
        for row in group:
            if row["missing"]:
                missing.setdefault(f"{row['implementation']}: {row['missing']}", set()).add(row["operation"])
        present = [row for row in group if not row["missing"]]
        if not present or present[0]["sweep"]:
            continue
        for row in present:
            name = row["implementation"] + (
                "" if row["kind"] == "ours" or row["same_result"] in (True, "True") else " *"
            )
            leading = (row["operation"], row["size"]) if row is present[0] else ("", "")
            spread = f"{row['p20_ms']} – {row['p80_ms']}"
            figures = (row["median_ms"], spread, ratio(row, present[0]), row["peak_extra_mib"], nearest_ceiling(row))
            table.add_row(*leading, name, *figures, style="bold" if row is present[0] else "")
        table.add_section()
    console.print(table)
    console.print("* another answer to the same question, or part of the work: its time alone is comparable")
    for line, operations in sorted(missing.items()):
        console.print(f"missing: {line} [{', '.join(sorted(operations))}]", highlight=False, markup=False)
    console.print(
        f"{first['machine']}, {first['threads']} threads, torch {first['torch']}, {first['date']}", markup=False
    )
    console.print(f"ceilings: {ceilings}", markup=False)


def print_expectations(rows: Rows, expectations: Sequence[Expectation]) -> None:
    """Each whose operation was run: what was measured, what was wanted, whether it holds."""
    run = {(row["operation"], row["size"]) for row in rows}
    table = Table("expectation", "size", "measured", "wanted", "")
    for expectation in expectations:
        name, measured, wanted, verdict = expectation.row(rows)
        if (expectation.operation, expectation.size) in run:
            table.add_row(name, expectation.size, measured, wanted, verdict)
    if table.row_count:
        Console(width=170).print(table)
