"""The command ``nerve-segment``: its options, and what happens to each picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .command_support import (
    MODELS,
    OUTPUT,
    load_pipeline,
    option,
    read_background,
    read_if_given,
    read_settings,
    refusing,
    say,
)
from .inputs import find_pictures, labels_beside, result_stems
from .pictures import NotAPictureError, load_picture
from .presets import DEFAULT_PRESET, PRESETS
from .prompts import LabelsLike, parse_labels, refuse_a_single_label, split_words

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command()
def segment(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE", help="Files, folders, or quoted globs.")],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            "-l",
            show_default=False,
            help='What to look for: "cat, dog|puppy, grass"; names joined by | are synonyms. '
            "Without it, labels are read from NAME.txt, labels.txt or labels.json beside each picture.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", rich_help_panel=OUTPUT)] = Path(
        "segmented"
    ),
    side_by_side: Annotated[
        bool,
        typer.Option("--side-by-side", help="Show the picture beside its overlay.", rich_help_panel=OUTPUT),
    ] = False,
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(PRESETS)}.", rich_help_panel=MODELS)
    ] = DEFAULT_PRESET,
    diffusion: Annotated[
        str | None, option(panel=MODELS, help="Stable Diffusion 1.x/2.x: a folder or a hub id.")
    ] = None,
    clip: Annotated[str | None, option(panel=MODELS, help="CLIP: a folder or a hub id.")] = None,
    device: Annotated[str | None, option(panel=MODELS, help="cpu, cuda, cuda:1, ...; a GPU if there is one.")] = None,
    dtype: Annotated[str | None, option(panel=MODELS, help="float32, float16 or bfloat16; float16 on a GPU.")] = None,
    config: Annotated[Path | None, option(help="JSON file of settings, in place of the preset's.")] = None,
    background: Annotated[str | None, option(help='Words that are background: "sky, wall", or "default".')] = None,
    threshold: Annotated[float | None, option(help="Least probability of a label, 0 to 1; below: background.")] = None,
    alpha: Annotated[float | None, option(help="Weight of the neighbours in each step, 0 to below 1.")] = None,
    beta: Annotated[float | None, option(help="Share of the global affinity, 0 to 1.")] = None,
    steps: Annotated[int | None, option(help="Steps of the walk.")] = None,
    tolerance: Annotated[float | None, option(help="In place of steps: largest distance to the walk's limit.")] = None,
    temperature: Annotated[float | None, option(help="Of the head weights, above 0.")] = None,
    criterion: Annotated[str | None, option(help="Head weights by entropy, information or uniform.")] = None,
    keep: Annotated[int | None, option(help="Use only so many attention maps, the best.")] = None,
    window: Annotated[int | None, option(help="Side of the local affinity's window in tokens, odd.")] = None,
    cells: Annotated[int | None, option(help="Cells of the global affinity along a side.")] = None,
    timesteps: Annotated[str | None, option(help='Noise levels: "100" or "50, 100".')] = None,
    layers: Annotated[str | None, option(help='Attention layers: "64", "latent/1", "up_blocks.3.*".')] = None,
    templates: Annotated[str | None, option(help="Prompts: imagenet80, short, photo or name.")] = None,
    seed_mode: Annotated[str | None, option(help="cosine or cross_attention.")] = None,
    noise_seed: Annotated[int | None, option(help="Seed of the noise.")] = None,
    walk: Annotated[bool | None, option("--walk/--no-walk", help="Without the walk: what CLIP says alone.")] = None,
    backend: Annotated[str | None, option(help="eager, cpp, triton or cuda; the best there is.")] = None,
) -> None:
    """Colour and name what is in pictures, by any words, without training.

    For each picture NAME it writes NAME_overlay.png, NAME_labels.png (indices with the VOC
    palette) and NAME.json (area and mean probability of each label).
    """
    overrides = {
        "background_words": read_if_given(background, read_background),
        "probability_threshold": threshold,
        "alpha": alpha,
        "beta": beta,
        "steps": steps,
        "tolerance": tolerance,
        "temperature": temperature,
        "criterion": criterion,
        "keep": keep,
        "window": window,
        "cells": cells,
        "timesteps": read_if_given(timesteps, lambda text: _numbers("--timesteps", text)),
        "layers": read_if_given(layers, _layers),
        "templates": templates,
        "seed_mode": seed_mode,
        "noise_seed": noise_seed,
        "walk": walk,
        "backend": backend,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = read_settings(config, preset, custom=bool(diffusion and clip), overrides=given)
    files, complaints = find_pictures(pictures)
    words: dict[Path, LabelsLike] = {file: _words_beside(file) if labels is None else labels for file in files}
    for wanted in words.values():
        refusing(refuse_a_single_label, refusing(parse_labels, wanted, settings.background_words))
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out: {out} is a file, wanted a folder")
    # File names are shown as they are: no markup, no emoji codes.
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    for complaint in complaints:
        say(console, complaint)
    if not files:
        raise typer.Exit(1)
    pipeline = load_pipeline(preset, diffusion, clip, device, dtype, settings, program="nerve-segment")
    failures = len(complaints)
    stems = result_stems(files, out)
    with Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        # What goes to a file or a pipe must not end up on the terminal's bar.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task("segmenting", total=len(files))
        for file, stem in zip(files, stems, strict=True):
            try:
                result = pipeline(load_picture(file), words[file])
                written = result.save(stem, side_by_side=side_by_side)
            except NotAPictureError as error:
                failures += 1
                say(console, str(error))
            except (OSError, ValueError, RuntimeError) as error:
                failures += 1
                say(console, f"{file}: {error}")
            else:
                typer.echo(written["overlay"])
            progress.advance(task)
    if failures:
        raise typer.Exit(1)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in split_words(text))
    except ValueError:
        raise typer.BadParameter(f"{option}: got {text!r}, wanted whole numbers such as '50, 100'") from None


def _layers(text: str) -> tuple[int | str, ...]:
    return tuple(int(word) if word.isdigit() else word for word in split_words(text))


def _words_beside(file: Path) -> LabelsLike:
    found: LabelsLike | None = refusing(labels_beside, file)
    if found is None:
        raise typer.BadParameter(
            '--labels: wanted, as in --labels "cat, dog|puppy"; there is none for '
            f"{file} in {file.with_suffix('.txt').name}, labels.txt or labels.json beside it either"
        )
    return found
