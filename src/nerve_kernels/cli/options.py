"""What the commands share: options as people write them, read and checked before anything is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.annotations.formats import FORMATS
from nerve_kernels.segmentation.config import NerveConfig, check_backend
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.presets import PRESETS, find_preset
from nerve_kernels.segmentation.result import RESULT_ENDINGS, RESULT_FORMATS, is_own_summary
from nerve_kernels.segmentation.text_image.prompts import LabelsLike, parse_labels, refuse_a_single_label, split_words

from .inputs import labels_beside
from .memory import is_out_of_memory
from .quiet import quiet_libraries

MODELS = "Models"
METHOD = "Method"
OUTPUT = "Output"
OUTPUT_FORMATS = (*RESULT_FORMATS, *FORMATS)
DIFFUSION_HELP = "Stable Diffusion, FLUX, PixArt, DINO or ViT: a folder or a hub id."
CLIP_HELP = "CLIP, OpenCLIP or SigLIP: a folder or a hub id."
AUTOENCODER_HELP = "In place of the checkpoint's VAE, such as madebyollin/taesd."
BATCH_HELP = "Images that go through the models at once."
DTYPE_HELP = "float32, float16 or bfloat16; by default what the device computes fastest."


def option(*names: str, panel: str = METHOD, help: str, values: Sequence[str] = (), **more: Any) -> Any:
    """An option without a default of its own: where it is not given, presets and files decide.

    Args:
        names: as on the command line; none: that of the argument.
        panel: the heading in the help.
        help: one line.
        values: what a shell offers.
        more: for ``typer.Option``.
    """
    completion = among(*values) if values else None
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, autocompletion=completion, **more)


def among(*names: str) -> Callable[[str], list[str]]:
    """What a shell offers for an option's value.

    Example:
        >>> among("float16", "float32", "bfloat16")("fl")
        ['float16', 'float32']
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def as_usage_error(action: Callable[..., Any], *arguments: Any) -> Any:
    """Run what checks options; what it refuses is a wrong use of the command."""
    try:
        return action(*arguments)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None


def read_if_given(text: str | None, reader: Callable[[str], Any]) -> Any:
    """None where the option was not given."""
    return None if text is None else reader(text)


def read_background(text: str) -> str | tuple[str, ...]:
    """``"default"``, or words between commas."""
    return "default" if text.strip() == "default" else split_words(text)


def read_timesteps(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        return tuple(int(word) for word in split_words(text))
    except ValueError:
        raise typer.BadParameter(refusal("--timesteps", "whole numbers such as '50, 100'", repr(text))) from None


def read_formats(text: str) -> tuple[str, ...]:
    """Names of formats between commas."""
    formats = split_words(text)
    unknown = next((name for name in formats if name not in OUTPUT_FORMATS), None)
    if unknown is not None or not formats:
        raise typer.BadParameter(refusal("--format", f"some of {', '.join(OUTPUT_FORMATS)}", repr(unknown or text)))
    return tuple(dict.fromkeys(formats))


def read_layers(text: str) -> tuple[int | str, ...]:
    """Selectors between commas; a number is a grid's side."""
    return tuple(int(word) if word.isascii() and word.isdigit() else word for word in split_words(text))


def resolve_config(
    file: Path | None,
    preset: str,
    *,
    custom: bool,
    overrides: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> NerveConfig:
    """The settings in force: the file's or the preset's, with what the command line changes.

    Args:
        file: a JSON file of settings, or None.
        preset: whose settings to take where there is no file.
        custom: both models were named, so that no preset's settings fit.
        overrides: the fields that were given.
        defaults: what the command adds to a preset's settings, or to the defaults, where there is no file.
    """

    def read() -> NerveConfig:
        if file is not None:
            try:
                base = NerveConfig.load(file)
            except OSError as error:
                raise ValueError(f"--config: cannot read {file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"--config: {file} is not a text file") from None
        else:
            if not custom and preset not in PRESETS:
                find_preset(preset)
            base = (NerveConfig() if custom else PRESETS[preset].config).replace(**(defaults or {}))
        return base.replace(**overrides)

    result: NerveConfig = as_usage_error(read)
    return result


def save_settings(config: NerveConfig, file: Path) -> None:
    """Write the settings in force, so that ``--config`` brings them back."""
    try:
        config.save(file)
    except OSError as error:
        raise typer.BadParameter(f"--save-config: cannot write {file}: {error.strerror}") from None


def check_save_config(
    file: Path, images: Sequence[Path], stems: Sequence[Path], *, config: Path | None, overwrite: bool
) -> None:
    """Refuse to write settings in the place of what was given, of a result, or of anything else but settings."""
    place = os.path.realpath(file)
    if config is not None and place == os.path.realpath(config):
        return
    if place in {os.path.realpath(result) for stem in stems for result in _results(stem)}:
        raise typer.BadParameter(f"--save-config: {file} is where a result goes; choose another file")
    if not os.path.lexists(file):
        return
    if place in _given(images):
        raise typer.BadParameter(f"--save-config: {file} was given and would be replaced; choose another file")
    if not overwrite:
        try:
            NerveConfig.load(file)
        except (OSError, ValueError, TypeError):
            raise typer.BadParameter(
                f"--save-config: {file} is there and holds no settings; choose another file, or replace it with "
                "--overwrite"
            ) from None


def words_beside(file: Path) -> LabelsLike:
    """The labels written beside an image, or a complaint that there are none."""
    found: LabelsLike | None = as_usage_error(labels_beside, file)
    if found is None:
        raise typer.BadParameter(
            '--labels: wanted, as in --labels "cat, dog|puppy"; there is none for '
            f"{file} in {file.with_suffix('.txt').name}, labels.txt or labels.json beside it either"
        )
    return found


def check_words(words: LabelsLike, config: NerveConfig, *, beside: Path | None = None) -> None:
    """Refuse labels that cannot be used; those that were found beside an image are refused with its name."""
    try:
        refuse_a_single_label(parse_labels(words, config.background_words))
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error) if beside is None else f"{error} (found beside {beside})") from None


def check_output(
    folder: Path,
    stems: Sequence[Path],
    images: Sequence[Path],
    *,
    formats: Collection[str] = RESULT_FORMATS,
    annotations: Sequence[Path] = (),
    config: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Refuse a folder that cannot be written to, or in which results would replace what is not ours.

    What was given is never replaced: images, labels beside them, settings. Files of a result's name that are there
    already are replaced where the summary among them is one that this command has written; annotations may have been
    corrected by hand since.
    """
    given = _given(images) | ({os.path.realpath(config)} if config is not None else set())

    def refuse(there: Sequence[Path], why: str) -> None:
        for result in there:
            if os.path.realpath(result) in given:
                raise typer.BadParameter(f"--out: {result} was given and would be replaced; choose another folder")
        if there and not overwrite and why:
            raise typer.BadParameter(
                f"--out: {there[0]} is there and {why}; choose another folder, or replace it with --overwrite"
            )

    for stem in stems:
        there = [result for result in _results(stem, formats) if os.path.lexists(result)]
        own = is_own_summary(_results(stem)[-1])
        refuse(there, "" if own else "is no earlier result of this command")
    refuse([path for path in annotations if os.path.lexists(path)], "may have been corrected by hand")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise typer.BadParameter(refusal("--out", "a folder", f"the file {folder}")) from None
    except OSError as error:
        raise typer.BadParameter(
            f"--out: cannot write to {folder}: {error.strerror}; choose another folder with --out"
        ) from None


def _given(images: Sequence[Path]) -> set[str]:
    """The images and every file that their labels may be in."""
    beside = (
        path
        for image in images
        for path in (image, image.with_suffix(".txt"), image.with_name("labels.txt"), image.with_name("labels.json"))
    )
    return {os.path.realpath(path) for path in beside}


def _results(stem: Path, formats: Collection[str] = RESULT_FORMATS) -> list[Path]:
    """The files that an image's results go to, the summary last."""
    endings = [ending for ending in RESULT_ENDINGS.values() if ending.rpartition(".")[2] in formats]
    return [stem.with_name(stem.name + ending) for ending in endings]


def load(
    preset: str,
    diffusion: str | None,
    clip: str | None,
    autoencoder: str | None,
    device: str | None,
    dtype: str | None,
    config: NerveConfig,
) -> NervePipeline:
    """The pipeline of a preset, or of the models that are named in its place.

    Raises:
        ModelLoadError: they cannot be had, or do not fit into memory.
    """
    as_usage_error(check_backend, config)
    quiet_libraries()

    models = {"diffusion": diffusion, "clip": clip, "autoencoder": autoencoder}
    try:
        pipeline: NervePipeline = as_usage_error(
            lambda: NervePipeline.from_names(preset, **models, device=device, dtype=dtype, config=config)
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            "out of memory while loading the models; use --dtype float16, another --device or --preset, or close "
            "other programs"
        ) from None
    return pipeline
