"""The commands ``nerve-evaluate`` and ``nerve-ablate``: their options, and what they print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nerve_kernels import BackendUnavailableError
from nerve_kernels._operators.checks import refusal
from nerve_kernels.cli.options import (
    AUTOENCODER_HELP,
    CLIP_HELP,
    DIFFUSION_HELP,
    DTYPE_HELP,
    MODELS,
    OUTPUT,
    as_usage_error,
    load,
    option,
    read_background,
    read_if_given,
    resolve_config,
)
from nerve_kernels.cli.plain import plain_line
from nerve_kernels.evaluation.datasets import DATASETS, open_dataset
from nerve_kernels.evaluation.labelled_images import LabelledImages
from nerve_kernels.evaluation.layouts import DatasetNotFoundError
from nerve_kernels.evaluation.processes import Processes, local_device
from nerve_kernels.evaluation.report import write_report
from nerve_kernels.evaluation.runner import SAVE_EVERY_SECONDS, Evaluation, check_save_every, evaluate
from nerve_kernels.evaluation.scorer import VOCABULARIES, Scorer
from nerve_kernels.evaluation.variants import BASE, ablation, parse_setting
from nerve_kernels.segmentation.config import check_backend
from nerve_kernels.segmentation.presets import PRESETS

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

DATA = "Data"
PROTOCOL = "Protocol"
DEFAULTS = {"background_words": "default"}


@app.command()
def run(
    dataset: Annotated[str, option("--dataset", "-d", panel=DATA, help=f"One of: {', '.join(DATASETS)}.")],
    root: Annotated[Path | None, option(panel=DATA, help="Where it was unpacked; embedded needs none.")] = None,
    split: Annotated[str | None, option(panel=DATA, help="val, train, ...; the one that is usually scored.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="So many images, spread evenly.", rich_help_panel=DATA, show_default=False),
    ] = None,
    vocabulary: Annotated[
        str | None,
        option(panel=DATA, help=f"{' or '.join(VOCABULARIES)}: ask for all classes, or for those in the image."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images ahead.", rich_help_panel=DATA)] = 0,
    out: Annotated[
        Path | None, option("--out", "-o", panel=OUTPUT, help="Folder of the run; evaluated/DATASET.")
    ] = None,
    save_every: Annotated[
        float, typer.Option(help="Seconds between savings of finished images.", rich_help_panel=OUTPUT)
    ] = SAVE_EVERY_SECONDS,
    verify: Annotated[
        bool,
        option("--verify", panel=OUTPUT, help="Compare the bytes of files scored earlier, not size and time alone."),
    ] = False,
    redo_changed: Annotated[
        bool, option("--redo-changed", panel=OUTPUT, help="Score images again whose files have changed.")
    ] = False,
    preset: Annotated[str | None, option(panel=MODELS, help=f"One of: {', '.join(PRESETS)}.")] = None,
    diffusion: Annotated[str | None, option(panel=MODELS, help=DIFFUSION_HELP)] = None,
    clip: Annotated[str | None, option(panel=MODELS, help=CLIP_HELP)] = None,
    autoencoder: Annotated[str | None, option(panel=MODELS, help=AUTOENCODER_HELP)] = None,
    device: Annotated[str | None, option(panel=MODELS, help="cpu, cuda, ...; under torchrun each its own GPU.")] = None,
    dtype: Annotated[
        str | None,
        option(panel=MODELS, help=DTYPE_HELP),
    ] = None,
    config: Annotated[Path | None, option(help="JSON file of settings, in place of the preset's.")] = None,
    settings: Annotated[
        list[str] | None, option("--set", help="Any setting: field=value, the value in JSON; may be repeated.")
    ] = None,
    clip_size: Annotated[int | None, option(panel=PROTOCOL, help="Short side of what CLIP sees, pixels.")] = None,
    clip_window: Annotated[int | None, option(panel=PROTOCOL, help="Side of CLIP's sliding windows, pixels.")] = None,
    clip_stride: Annotated[int | None, option(panel=PROTOCOL, help="Step between the windows, pixels.")] = None,
    whole_image: Annotated[bool, option("--whole-image", panel=PROTOCOL, help="One window: the image.")] = False,
    templates: Annotated[str | None, option(panel=PROTOCOL, help="Prompts: imagenet80, short, photo or name.")] = None,
    background: Annotated[
        str | None, option(panel=PROTOCOL, help='Words of the background: "sky, wall", or "default".')
    ] = None,
    threshold: Annotated[
        float | None, option(panel=PROTOCOL, help="Least probability of a class; below: background.")
    ] = None,
    boundary: Annotated[
        bool, option("--boundary", panel=PROTOCOL, help="Also Boundary IoU, of the pixels near boundaries.")
    ] = False,
    walk: Annotated[bool | None, option("--walk/--no-walk", help="Without the walk: what CLIP says alone.")] = None,
    criterion: Annotated[
        str | None,
        option("--criterion", "--heads", help="Head weights by entropy, information, cell_information or uniform."),
    ] = None,
    local_only: Annotated[bool, option("--local-only", help="The local affinity alone (beta = 0).")] = False,
    global_only: Annotated[bool, option("--global-only", help="The global affinity alone (beta = 1).")] = False,
    steps: Annotated[int | None, option(help="Steps of the walk.")] = None,
    limit_walk: Annotated[bool, option("--limit-walk", help="The walk's limit in place of steps.")] = False,
    seed_mode: Annotated[str | None, option(help="cosine or cross_attention.")] = None,
    refine: Annotated[
        str | None, option(help="Refine at the pixels, along the image's edges: walk, pamr or lposs+.")
    ] = None,
    ablate: Annotated[bool, option("--ablate", help="Also the variants of the usual ablation.")] = False,
    vary: Annotated[
        list[str] | None,
        option(help="In place of the usual ablation: field=[value, ...]; may be repeated."),
    ] = None,
) -> None:
    """Score the method on a data set: mIoU, IoU of each class, pixel accuracy, speed and memory.

    Writes result.json (with the confusion matrix), report.md, chart.png and overlays/ to the folder of the run. Killed
    at any moment, the same command goes on from the finished images. Under torchrun the processes share the work.
    """
    if local_only and global_only:
        raise typer.BadParameter(refusal("--local-only, --global-only", "at most one", "both"))
    if whole_image and clip_window is not None:
        raise typer.BadParameter(refusal("--whole-image, --clip-window", "at most one", "both"))
    if limit_walk and steps is not None:
        raise typer.BadParameter(refusal("--limit-walk, --steps", "at most one", "both"))
    as_usage_error(check_save_every, save_every)
    overrides = {
        "clip_size": clip_size,
        "clip_window": clip_window,
        "clip_stride": clip_stride,
        "templates": templates,
        "background_words": read_if_given(background, read_background),
        "probability_threshold": threshold,
        "walk": walk,
        "criterion": criterion,
        "beta": 0.0 if local_only else 1.0 if global_only else None,
        "steps": steps,
        "limit_walk": limit_walk or None,
        "seed_mode": seed_mode,
        "refine_pixels": refine,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    given |= {"clip_window": None} if whole_image else {}
    given |= dict(as_usage_error(parse_setting, text) for text in settings or ())
    data = _open(dataset, root, split)
    entry = DATASETS[dataset]
    models = preset or entry.preset
    base = resolve_config(config, models, custom=bool(diffusion and clip), overrides=given, defaults=DEFAULTS)
    variants = as_usage_error(ablation, base, vary or ()) if ablate or vary else {BASE: base}
    for one in variants.values():
        as_usage_error(check_backend, one)
    folder = out or Path("evaluated") / dataset
    pipeline = load(models, diffusion, clip, autoencoder, local_device(device), dtype, base)
    with Processes.join(pipeline.text_image.device) as processes:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)

        def score() -> Evaluation:
            asked = vocabulary or entry.vocabulary
            scorer = Scorer(pipeline, data, variants, vocabulary=asked, boundary=boundary)
            settings = {"limit": limit, "save_every": save_every, "workers": workers}
            settings |= {"verify": verify, "redo_changed": redo_changed}
            found = _with_progress(console, scorer, folder, processes, settings)
            if processes.is_first:
                write_report(folder, scorer, found)
            return found

        try:
            evaluation: Evaluation = as_usage_error(score)
        except BackendUnavailableError as error:
            raise typer.BadParameter(str(error)) from None
        processes.gather(None)  # nobody leaves before the report is written
        if processes.is_first:
            _print(console, evaluation, folder)


def _open(name: str, root: Path | None, split: str | None) -> LabelledImages[Any]:
    try:
        found: LabelledImages[Any] = as_usage_error(lambda: open_dataset(name, root, split=split))
    except DatasetNotFoundError as error:
        print(f"nerve-evaluate: --{error}", file=sys.stderr)  # several lines: what was looked for, what is there
        raise typer.Exit(2) from None
    return found


def _with_progress(
    console: Console,
    scorer: Scorer,
    folder: Path,
    processes: Processes,
    settings: Mapping[str, Any],
) -> Evaluation:
    """Evaluate, with a bar for the share of the first process; every process tells what it cannot read."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not processes.is_first,
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        share = f" (1 of {processes.count} processes)" if processes.count > 1 else ""
        task = progress.add_task(f"{scorer.dataset.name}{share}", total=None)

        def after(_: int, reason: str | None) -> None:
            progress.advance(task)
            if reason is not None:
                _say(console, reason)

        return evaluate(
            scorer,
            folder,
            processes=processes,
            **settings,
            on_start=lambda count: progress.update(task, total=count),
            on_image=after,
        )


def _print(console: Console, evaluation: Evaluation, folder: Path) -> None:
    resumed = f", {evaluation.resumed} of them by an earlier run" if evaluation.resumed else ""
    _say(console, f"{evaluation.images} images scored{resumed}, {len(evaluation.failures)} could not be")
    if evaluation.unchecked:
        _say(
            console,
            f"{evaluation.unchecked} of them by a version that kept no state of their files, counted as they are; if "
            "the files may have changed, choose another folder",
        )
    _say(console, f"{evaluation.images_per_second:.2f} images/s, {evaluation.processes} processes")
    for name, score in evaluation.scores.items():
        line = f"{name}: mIoU {100 * score.miou:.2f}, pixel accuracy {100 * score.pixel_accuracy:.2f}"
        by_class = evaluation.boundaries.get(name)
        typer.echo(f"{line}, boundary IoU {100 * fmean(by_class.values()):.2f}" if by_class else line)
    typer.echo(folder / "report.md")


def _say(console: Console, line: str) -> None:
    console.print(plain_line(line), soft_wrap=True)
