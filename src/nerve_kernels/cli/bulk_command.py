"""The command ``nerve-bulk``: its options, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import ray.exceptions
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nerve_kernels._operators.checks import refusal
from nerve_kernels.bulk.destination import Destination
from nerve_kernels.bulk.failures import reason_of
from nerve_kernels.bulk.runner import ROWS_PER_FILE, STALL_TIMEOUT, Outcome, Resources, Run, StalledError, run
from nerve_kernels.bulk.summary import Summary
from nerve_kernels.evaluation.variants import parse_setting
from nerve_kernels.segmentation.config import check_backend
from nerve_kernels.segmentation.loading import check_folder
from nerve_kernels.segmentation.presets import DEFAULT_PRESET, PRESETS

from .options import (
    AUTOENCODER_HELP,
    BATCH_HELP,
    CLIP_HELP,
    DIFFUSION_HELP,
    DTYPE_HELP,
    MODELS,
    OUTPUT,
    as_usage_error,
    check_words,
    option,
    read_background,
    read_if_given,
    resolve_config,
)
from .plain import plain_line

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

WORK = "Machines"


@app.command()
def bulk(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folders at any depth, quoted globs, files, s3://…, gs://… or hf://datasets/…: images, Parquet, tar.",
        ),
    ],
    labels: Annotated[str, typer.Option("--labels", "-l", help='What to look for: "cat, dog|puppy, grass".')],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or s3://… of the run.", rich_help_panel=OUTPUT)],
    column: Annotated[
        str | None, option(panel="Options", help="Of Parquet: the one with images, where there are several.")
    ] = None,
    rows_per_file: Annotated[
        int,
        typer.Option(
            min=1, help="Of each Parquet file; a kill loses less than so many a task.", rich_help_panel=OUTPUT
        ),
    ] = ROWS_PER_FILE,
    quiet: Annotated[bool, option("--quiet", "-q", panel=OUTPUT, help="Say nothing but errors.")] = False,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Pipelines; one for each GPU or CPU.", rich_help_panel=WORK, show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of each pipeline on the CPU.", rich_help_panel=WORK)] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(min=0.0, help="Of each pipeline; 0.5: two share a GPU.", rich_help_panel=WORK)
    ] = 0.0,
    address: Annotated[
        str | None, option(panel=WORK, help='A Ray cluster, "auto": the one of this machine; else Ray is started here.')
    ] = None,
    stall_timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds without any movement after which it ends.", rich_help_panel=WORK)
    ] = STALL_TIMEOUT,
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(PRESETS)}.", rich_help_panel=MODELS)
    ] = DEFAULT_PRESET,
    diffusion: Annotated[str | None, option(panel=MODELS, help=DIFFUSION_HELP)] = None,
    clip: Annotated[str | None, option(panel=MODELS, help=CLIP_HELP)] = None,
    autoencoder: Annotated[str | None, option(panel=MODELS, help=AUTOENCODER_HELP)] = None,
    batch: Annotated[
        int, typer.Option(help=f"{BATCH_HELP[:-1]}; half as many where memory runs out.", rich_help_panel=MODELS, min=1)
    ] = 1,
    device: Annotated[str | None, option(panel=MODELS, help="cpu, cuda, ...; a GPU if an actor has one.")] = None,
    dtype: Annotated[str | None, option(panel=MODELS, help=DTYPE_HELP)] = None,
    config: Annotated[Path | None, option(help="JSON file of settings, in place of the preset's.")] = None,
    settings: Annotated[
        list[str] | None, option("--set", help="Any setting: field=value, the value in JSON; may be repeated.")
    ] = None,
    background: Annotated[str | None, option(help='Words that are background: "sky, wall", or "default".')] = None,
) -> None:
    """Segment any number of images into Parquet, on this machine or a Ray cluster.

    A row an image goes to OUT/rows: id, size, for each label its mask as COCO's run lengths, area and mean
    probability, digests of settings and weights, and what was wrong. Killed at any moment, the same command goes on.

    \b
    [bold]Examples[/bold]
    A folder at any depth, on the CPUs of this machine:
      [cyan]nerve-bulk photos/ -l "cat, dog|puppy" -o masks[/cyan]
    A bucket, on the GPUs of a Ray cluster:
      [cyan]nerve-bulk s3://photos/2026 -l "cat, dog" -o s3://masks/2026 --address auto --gpus-per-actor 1[/cyan]
    Files for annotation tools from the rows:
      [cyan]nerve-bulk export masks --format coco,labelme,yolo --to annotations[/cyan]

    \b
    [bold]Exit codes[/bold]
      0    every image is a row
      1    some rows hold an error, or the run could not go on; what is written is whole
      2    wrong options, sources, or a destination that holds another run
      3    a fault of this program; please report it
      130  interrupted; the same command goes on
    """
    given = dict(as_usage_error(parse_setting, text) for text in settings or ())
    if background is not None:
        given["background_words"] = read_if_given(background, read_background)
    in_force = resolve_config(config, preset, custom=bool(diffusion and clip), overrides=given)
    check_words(labels, in_force)
    as_usage_error(check_backend, in_force)
    for argument, source in (("diffusion", diffusion), ("clip", clip), ("autoencoder", autoencoder)):
        if source is not None:
            check_folder(source, argument=argument)
    if stall_timeout != stall_timeout:
        raise typer.BadParameter(refusal("--stall-timeout", "seconds", stall_timeout))
    models = {"preset": None if diffusion and clip else preset, "diffusion": diffusion, "clip": clip}
    models |= {"autoencoder": autoencoder, "dtype": dtype}
    wanted = Run(
        sources,
        out,
        {
            **{name: value for name, value in models.items() if value is not None},
            "labels": labels,
            "config": in_force,
            "threads": threads,
            "batch": batch,
            "device": device or ("cuda" if gpus_per_actor else "cpu"),
        },
        {"labels": labels, "config": json.loads(in_force.to_json()), "models": models},
        Resources(actors, threads, gpus_per_actor, address),
        rows_per_file,
        stall_timeout,
        column,
    )
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    try:
        outcome: Outcome = as_usage_error(_run, console, wanted, quiet)
    except (StalledError, ray.exceptions.RayError) as error:
        console.print(plain_line(f"nerve-bulk: {reason_of(error)}"), soft_wrap=True)
        raise typer.Exit(1) from None
    summary = Summary.of(Destination(out))
    if not quiet:
        _say(console, outcome, summary)
        typer.echo(f"{Destination(out).place}/rows")
    elif summary.failures:
        _say_failures(console, summary)
    if summary.failures or summary.rows != summary.distinct:
        raise typer.Exit(1)


def _run(console: Console, wanted: Run, quiet: bool) -> Outcome:
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
            bar.update(task, total=count, completed=resumed, description="segmenting")

        return run(wanted, on_start=start, on_rows=lambda rows: bar.update(task, completed=earlier + rows))


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
