"""The command ``nerve-segment``: its options, and what happens to each image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerve_kernels import __version__
from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.annotations.formats import FORMATS, Annotations
from nerve_kernels.segmentation.config_fields import CRITERIA, PIXEL_REFINERS, SEED_MODES
from nerve_kernels.segmentation.presets import DEFAULT_PRESET, PRESETS
from nerve_kernels.segmentation.result import RESULT_FORMATS
from nerve_kernels.segmentation.text_image.prompts import LabelsLike, parse_labels
from nerve_kernels.segmentation.text_image.templates import TEMPLATE_LISTS

from .inputs import find_images, names_below, result_stems
from .options import (
    AUTOENCODER_HELP,
    BATCH_HELP,
    CLIP_HELP,
    DIFFUSION_HELP,
    DTYPE_HELP,
    MODELS,
    OUTPUT,
    OUTPUT_FORMATS,
    among,
    as_usage_error,
    check_output,
    check_save_config,
    check_words,
    load,
    option,
    read_background,
    read_formats,
    read_if_given,
    read_layers,
    read_timesteps,
    resolve_config,
    save_settings,
    words_beside,
)
from .report import Report
from .segmenting import Wanted, segment_all

app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nerve-segment {__version__}")
        raise typer.Exit


@app.command()
def segment(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Files, folders, or quoted globs.", show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            "-l",
            show_default=False,
            help='What to look for: "cat, dog|puppy, grass"; names joined by | are synonyms. '
            "Without it, labels are read from NAME.txt, labels.txt or labels.json beside each image.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", rich_help_panel=OUTPUT)] = Path(
        "segmented"
    ),
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help=f"Of: {', '.join(OUTPUT_FORMATS)}; the last three are for annotation tools.",
            rich_help_panel=OUTPUT,
        ),
    ] = ",".join(RESULT_FORMATS),
    side_by_side: Annotated[
        bool, option("--side-by-side", panel=OUTPUT, help="Show the image beside its overlay.")
    ] = False,
    overwrite: Annotated[
        bool, option("--overwrite", panel=OUTPUT, help="Replace files that are no earlier result of this command.")
    ] = False,
    quiet: Annotated[bool, option("--quiet", "-q", panel=OUTPUT, help="Say nothing but errors.")] = False,
    as_json: Annotated[
        bool, option("--json", panel=OUTPUT, help="Print a line of JSON for each image: its files, areas, or error.")
    ] = False,
    explain: Annotated[
        bool, option("--explain", panel=OUTPUT, help="Say how long each phase took, and what it ran on.")
    ] = False,
    save_config: Annotated[
        Path | None,
        option(
            "--save-config",
            panel=OUTPUT,
            help="Write the settings in force to a JSON file for --config; needs no IMAGE.",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help=f"One of: {', '.join(PRESETS)}.", rich_help_panel=MODELS, autocompletion=among(*PRESETS))
    ] = DEFAULT_PRESET,
    diffusion: Annotated[str | None, option(panel=MODELS, help=DIFFUSION_HELP)] = None,
    clip: Annotated[str | None, option(panel=MODELS, help=CLIP_HELP)] = None,
    autoencoder: Annotated[str | None, option(panel=MODELS, help=AUTOENCODER_HELP)] = None,
    device: Annotated[
        str | None, option(panel=MODELS, help="cpu, cuda, cuda:1, ...; a GPU if there is one.", values=("cpu", "cuda"))
    ] = None,
    dtype: Annotated[
        str | None,
        option(
            panel=MODELS,
            help=DTYPE_HELP,
            values=("float32", "float16", "bfloat16"),
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help=BATCH_HELP, rich_help_panel=MODELS, min=1)] = 1,
    size: Annotated[
        int | None, option(panel=MODELS, help="Shorter side of the image for Stable Diffusion, in pixels.")
    ] = None,
    clip_size: Annotated[
        int | None, option(panel=MODELS, help="Shorter side of the image for CLIP, in pixels.")
    ] = None,
    config: Annotated[Path | None, option(help="JSON file of settings, in place of the preset's.")] = None,
    background: Annotated[str | None, option(help='Words that are background: "sky, wall", or "default".')] = None,
    threshold: Annotated[float | None, option(help="Least probability of a label, 0 to 1; below: background.")] = None,
    alpha: Annotated[float | None, option(help="Weight of the neighbours in each step, 0 to below 1.")] = None,
    beta: Annotated[float | None, option(help="Share of the global affinity, 0 to 1.")] = None,
    sharpness: Annotated[
        float | None, option(help="Of the global affinity: scores times so much; about 4 for vision transformers.")
    ] = None,
    steps: Annotated[int | None, option(help="Steps of the walk.")] = None,
    tolerance: Annotated[float | None, option(help="In place of steps: largest distance to the walk's limit.")] = None,
    temperature: Annotated[float | None, option(help="Of the head weights, above 0.")] = None,
    criterion: Annotated[
        str | None,
        option(
            "--criterion",
            "--heads",
            help="Head weights by entropy, information, cell_information or uniform.",
            values=CRITERIA,
        ),
    ] = None,
    keep: Annotated[int | None, option(help="Use only so many attention maps, the best.")] = None,
    window: Annotated[int | None, option(help="Side of the local affinity's window in tokens, odd.")] = None,
    cells: Annotated[int | None, option(help="Cells of the global affinity along a side.")] = None,
    timesteps: Annotated[str | None, option(help='Noise levels: "100" or "50, 100".')] = None,
    layers: Annotated[str | None, option(help='Attention layers: "64", "latent/1", "up_blocks.3.*".')] = None,
    templates: Annotated[
        str | None, option(help="Prompts: imagenet80, short, photo or name.", values=tuple(TEMPLATE_LISTS))
    ] = None,
    seed_mode: Annotated[str | None, option(help="cosine or cross_attention.", values=SEED_MODES)] = None,
    noise_seed: Annotated[int | None, option(help="Seed of the noise.")] = None,
    refine: Annotated[
        str | None,
        option(help="Refine at the pixels, along the image's edges: walk, pamr or lposs+.", values=PIXEL_REFINERS),
    ] = None,
    walk: Annotated[bool | None, option("--walk/--no-walk", help="Without the walk: what CLIP says alone.")] = None,
    backend: Annotated[
        str | None,
        option(help="eager, cpp, triton or cuda; the best there is.", values=("eager", "cpp", "triton", "cuda")),
    ] = None,
    version: Annotated[
        bool,
        option("--version", panel="Options", help="Show the version and leave.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Colour and name what is in images, by any words, without training.

    For each image NAME it writes NAME_overlay.png, NAME_labels.png and NAME.json; --format says what else, or instead.

    \b
    [bold]Examples[/bold]
    One image, two labels; "puppy" is another word for "dog":
      [cyan]nerve-segment park.jpg --labels "cat, dog|puppy"[/cyan]
    A folder; what is neither is background; results go to masks/:
      [cyan]nerve-segment photos/ -l "cat, dog" --background default --out masks[/cyan]
    All JPEGs below a folder, labels from labels.txt beside them:
      [cyan]nerve-segment "photos/**/*.jpg"[/cyan]
    Stable Diffusion 1.5 and CLIP from the hub, for photographs:
      [cyan]nerve-segment park.jpg -l "cat, grass" --preset sd15-clip-b16[/cyan]
    What ran where, and how long it took:
      [cyan]nerve-segment park.jpg -l "cat, grass" --explain[/cyan]
    Keep settings, and use them again:
      [cyan]nerve-segment --alpha 0.9 --window 9 --save-config mine.json[/cyan]
      [cyan]nerve-segment park.jpg -l "cat, grass" --config mine.json[/cyan]
    Masks for annotation tools: coco.json, labelme/NAME.json, yolo/labels/NAME.txt:
      [cyan]nerve-segment photos/ -l "cat, dog" --format coco,labelme,yolo[/cyan]
    For scripts, a line of JSON for each image and no progress bar:
      [cyan]nerve-segment photos/ -l "cat, grass" --json --quiet[/cyan]

    \b
    [bold]Exit codes[/bold]
      0    every image was segmented and written
      1    some could not be, or no model could be loaded; the rest is written
      2    wrong options, before anything is computed
      3    a fault of this program; please report it
      130  interrupted; the files that are there are whole
    """
    if not images and save_config is None:
        example = 'give one, as in nerve-segment park.jpg --labels "cat, dog"; see --help'
        raise typer.BadParameter(refusal("IMAGE", "at least one", "none", example))
    overrides = {
        "diffusion_size": size,
        "clip_size": clip_size,
        "background_words": read_if_given(background, read_background),
        "probability_threshold": threshold,
        "alpha": alpha,
        "beta": beta,
        "global_sharpness": sharpness,
        "steps": steps,
        "tolerance": tolerance,
        "temperature": temperature,
        "criterion": criterion,
        "keep": keep,
        "window": window,
        "cells": cells,
        "timesteps": read_if_given(timesteps, read_timesteps),
        "layers": read_if_given(layers, read_layers),
        "templates": templates,
        "seed_mode": seed_mode,
        "noise_seed": noise_seed,
        "refine_pixels": refine,
        "walk": walk,
        "backend": backend,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    in_force = resolve_config(config, preset, custom=bool(diffusion and clip), overrides=given)
    files, complaints = find_images(images or [])
    words: dict[Path, LabelsLike] = {file: words_beside(file) if labels is None else labels for file in files}
    if labels is not None:
        check_words(labels, in_force)
    for file in files if labels is None else ():
        check_words(words[file], in_force, beside=file)
    stems, names, asked = result_stems(files, out), names_below(files), read_formats(formats)
    known = [parse_labels(words[file], in_force.background_words) for file in files]
    others = [name for one in known for number, name in enumerate(one.shown) if number != one.background]
    annotations = Annotations([name for name in asked if name in FORMATS], out, list(dict.fromkeys(others)))
    if save_config is not None:
        check_save_config(save_config, files, stems, config=config, overwrite=overwrite)
    if files:
        check_output(
            out,
            stems,
            files,
            formats=asked,
            annotations=as_usage_error(annotations.paths, names),
            config=config,
            overwrite=overwrite,
        )
    if save_config is not None:
        save_settings(in_force, save_config)
    # Before anything is said: what is wrong with the options is then all that is said.
    pipeline = load(preset, diffusion, clip, autoencoder, device, dtype, in_force) if files else None
    report = Report(quiet=quiet, as_json=as_json, explain=explain)
    for complaint in complaints:
        report.failed(complaint)
    if pipeline is not None:
        report.loaded(pipeline.loaded)
        wanted = [Wanted(file, words[file], stem, name) for file, stem, name in zip(files, stems, names, strict=True)]
        with annotations.closing():
            segment_all(pipeline, wanted, asked, annotations, side_by_side=side_by_side, batch=batch, report=report)
    if report.failures:
        raise typer.Exit(1)
