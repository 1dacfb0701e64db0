"""What ``nerve-bulk`` and ``nerve-bulk query`` share: options of a run, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import ray.exceptions
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nerve_kernels._operators.checks import refusal
from nerve_kernels.bulk.destination import Destination
from nerve_kernels.bulk.failures import reason_of
from nerve_kernels.bulk.runner import Outcome, Run, StalledError, run
from nerve_kernels.bulk.summary import Summary

from .options import OUTPUT, as_usage_error, option
from .plain import plain_line

WORK = "Machines"
Out = Annotated[str, typer.Option("--out", "-o", help="Folder or s3://… of the run.", rich_help_panel=OUTPUT)]
RowsPerFile = Annotated[
    int,
    typer.Option(min=1, help="Of each Parquet file; a kill loses less than so many a task.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, option("--quiet", "-q", panel=OUTPUT, help="Say nothing but errors.")]
Actors = Annotated[
    int | None,
    typer.Option(min=1, help="Pipelines; one for each GPU or CPU.", rich_help_panel=WORK, show_default=False),
]
Threads = Annotated[int, typer.Option(min=1, help="Of each pipeline on the CPU.", rich_help_panel=WORK)]
GpusPerActor = Annotated[
    float, typer.Option(min=0.0, help="Of each pipeline; 0.5: two share a GPU.", rich_help_panel=WORK)
]
Address = Annotated[
    str | None, option(panel=WORK, help='A Ray cluster, "auto": the one of this machine; else Ray is started here.')
]
StallTimeout = Annotated[
    float, typer.Option(min=1.0, help="Seconds without any movement after which it ends.", rich_help_panel=WORK)
]
DEVICE_HELP = "cpu, cuda, ...; a GPU if an actor has one."


def execute(wanted: Run, kind: type, quiet: bool) -> None:
    """Run, and say what was done; leaves with 1 where it could not go on, or rows hold errors."""
    if wanted.stall_timeout != wanted.stall_timeout:
        raise typer.BadParameter(refusal("--stall-timeout", "seconds", wanted.stall_timeout))
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    try:
        outcome: Outcome = as_usage_error(_run, console, wanted, kind, quiet)
    except (StalledError, ray.exceptions.RayError) as error:
        console.print(plain_line(f"nerve-bulk: {reason_of(error)}"), soft_wrap=True)
        raise typer.Exit(1) from None
    summary = Summary.of(Destination(wanted.out))
    if not quiet:
        _say(console, outcome, summary)
        typer.echo(f"{Destination(wanted.out).place}/rows")
    elif summary.failures:
        _say_failures(console, summary)
    if summary.failures or summary.rows != summary.distinct:
        raise typer.Exit(1)


def given_only(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that nobody gave."""
    return {name: value for name, value in options.items() if value is not None}


def _run(console: Console, wanted: Run, kind: type, quiet: bool) -> Outcome:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=sys.stdout.isatty(),
        disable=quiet,
    ) as bar:
        task = bar.add_task("starting", total=None)
        earlier = 0

        def start(count: int, resumed: int) -> None:
            nonlocal earlier
            earlier = resumed
            bar.update(task, total=count, completed=resumed, description="images")

        return run(wanted, kind=kind, on_start=start, on_rows=lambda rows: bar.update(task, completed=earlier + rows))


def _say(console: Console, outcome: Outcome, summary: Summary) -> None:
    new = summary.rows - outcome.resumed
    earlier = f", {outcome.resumed} of them by earlier commands" if outcome.resumed else ""
    doubled = f", {summary.rows - summary.distinct} twice" if summary.rows != summary.distinct else ""
    lines = [f"{summary.rows} images{earlier}{doubled}, {summary.failures} with an error"]
    lines.append(f"{new / outcome.seconds:.2f} images/s in {outcome.seconds:.0f} s, loading of the models included")
    whole = sum(summary.seconds.values())
    shares = sorted(summary.seconds.items(), key=lambda one: -one[1])
    if whole:
        lines.append(", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in shares))
    for line in lines:
        console.print(plain_line(line), soft_wrap=True)
    _say_failures(console, summary)


def _say_failures(console: Console, summary: Summary) -> None:
    for _, error in summary.examples:
        console.print(plain_line(error), soft_wrap=True)
    if summary.failures > len(summary.examples):
        console.print(f"and {summary.failures - len(summary.examples)} more, in the column error", soft_wrap=True)
