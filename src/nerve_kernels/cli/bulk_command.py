"""The command ``nerve-bulk``: its options, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nerve_kernels._operators.checks import refusal
from nerve_kernels.bulk.features import Encoder
from nerve_kernels.bulk.runner import ROWS_PER_FILE, STALL_TIMEOUT, Resources, Run
from nerve_kernels.bulk.segmenter import Segmenter
from nerve_kernels.bulk.sources import find_sources
from nerve_kernels.evaluation.variants import parse_setting
from nerve_kernels.segmentation.config import check_backend
from nerve_kernels.segmentation.loading import check_folder
from nerve_kernels.segmentation.presets import DEFAULT_PRESET, PRESETS

from .bulk_running import (
    DEVICE_HELP,
    Actors,
    Address,
    GpusPerActor,
    Out,
    Quiet,
    RowsPerFile,
    StallTimeout,
    Threads,
    execute,
    given_only,
)
from .options import (
    AUTOENCODER_HELP,
    BATCH_HELP,
    CLIP_HELP,
    DIFFUSION_HELP,
    DTYPE_HELP,
    MODELS,
    as_usage_error,
    check_words,
    option,
    read_background,
    read_if_given,
    resolve_config,
)

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command()
def bulk(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folders at any depth, quoted globs, files, s3://…, gs://… or hf://datasets/…: images, Parquet, tar.",
        ),
    ],
    out: Out,
    labels: Annotated[
        str | None,
        typer.Option("--labels", "-l", help='What to look for: "cat, dog|puppy, grass".', show_default=False),
    ] = None,
    features: Annotated[
        bool, option("--features", panel="Options", help="In place of words: keep what nerve-bulk query asks them of.")
    ] = False,
    column: Annotated[
        str | None, option(panel="Options", help="Of Parquet: the one with images, where there are several.")
    ] = None,
    rows_per_file: RowsPerFile = ROWS_PER_FILE,
    quiet: Quiet = False,
    actors: Actors = None,
    threads: Threads = 1,
    gpus_per_actor: GpusPerActor = 0.0,
    address: Address = None,
    stall_timeout: StallTimeout = STALL_TIMEOUT,
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(PRESETS)}.", rich_help_panel=MODELS)
    ] = DEFAULT_PRESET,
    diffusion: Annotated[str | None, option(panel=MODELS, help=DIFFUSION_HELP)] = None,
    clip: Annotated[str | None, option(panel=MODELS, help=CLIP_HELP)] = None,
    autoencoder: Annotated[str | None, option(panel=MODELS, help=AUTOENCODER_HELP)] = None,
    batch: Annotated[
        int, typer.Option(help=f"{BATCH_HELP[:-1]}; half as many where memory runs out.", rich_help_panel=MODELS, min=1)
    ] = 1,
    device: Annotated[str | None, option(panel=MODELS, help=DEVICE_HELP)] = None,
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
    Features first, words later:
      [cyan]nerve-bulk photos/ --features -o kept && nerve-bulk query kept -l "cat, dog" -o masks[/cyan]
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
    if (labels is None) != features:
        raise typer.BadParameter(refusal("--labels, --features", "one of them", "both" if features else "none"))
    if labels is not None:
        check_words(labels, in_force)
    as_usage_error(check_backend, in_force)
    for argument, source in (("diffusion", diffusion), ("clip", clip), ("autoencoder", autoencoder)):
        if source is not None:
            check_folder(source, argument=argument)
    models = {"preset": None if diffusion and clip else preset, "diffusion": diffusion, "clip": clip}
    models |= {"autoencoder": autoencoder, "dtype": dtype}
    asked: dict[str, Any] = {"features": True} if labels is None else {"labels": labels}
    arguments: dict[str, Any] = {"out": out} if labels is None else {"labels": labels}
    arguments |= {"config": in_force, "threads": threads, "batch": batch}
    wanted = Run(
        find_sources(sources, column),
        out,
        given_only(models) | arguments | {"device": device or ("cuda" if gpus_per_actor else "cpu")},
        {**asked, "config": json.loads(in_force.to_json()), "models": models},
        Resources(actors, threads, gpus_per_actor, address),
        rows_per_file,
        stall_timeout,
    )
    execute(wanted, Segmenter if labels is not None else Encoder, quiet)
