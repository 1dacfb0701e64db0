"""What the commands share: reading options, settings and models, with a refusal in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .config import NerveConfig
from .loading import ModelLoadError
from .presets import PRESETS, find_preset
from .prompts import split_words

if TYPE_CHECKING:
    from rich.console import Console

    from .pipeline import NervePipeline

MODELS = "Models"
METHOD = "Method"
OUTPUT = "Output"


def option(*names: str, panel: str = METHOD, help: str) -> Any:
    """An option without a default of its own: where it is not given, presets and files decide."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


def read_if_given(text: str | None, reader: Callable[[str], Any]) -> Any:
    """None where the option was not given."""
    return None if text is None else reader(text)


def read_background(text: str) -> str | tuple[str, ...]:
    """Background words: ``"default"``, or words between commas."""
    return "default" if text.strip() == "default" else split_words(text)


def refusing(action: Callable[..., Any], *arguments: Any) -> Any:
    """Run what checks options; what it refuses is a wrong use of the command."""
    try:
        return action(*arguments)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None


def read_settings(
    file: Path | None,
    preset: str,
    *,
    custom: bool,
    overrides: Mapping[str, Any],
    usual: Mapping[str, Any] | None = None,
) -> NerveConfig:
    """The config a command line means.

    Args:
        file: of settings, in place of the preset's.
        preset: a preset's name.
        custom: whether both models were named, so that the preset does not matter.
        overrides: settings that were given.
        usual: what the command adds to a preset's settings, or to the defaults, where there is no file.
    """

    def read() -> NerveConfig:
        if file is not None:
            try:
                return NerveConfig.load(file).replace(**overrides)
            except OSError as error:
                raise ValueError(f"--config: cannot read {file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"--config: {file} is not a text file") from None
        if not custom and preset not in PRESETS:
            find_preset(preset)
        base = NerveConfig() if custom else PRESETS[preset].config
        return base.replace(**(usual or {})).replace(**overrides)

    result: NerveConfig = refusing(read)
    return result


def load_pipeline(
    preset: str,
    diffusion: str | None,
    clip: str | None,
    device: str | None,
    dtype: str | None,
    settings: NerveConfig,
    *,
    program: str,
) -> NervePipeline:
    """Load the models a command line names; `program` is called so where they cannot be loaded."""
    from .pipeline import NervePipeline
    from .quiet import quiet_libraries

    quiet_libraries()

    def load() -> NervePipeline:
        if diffusion and clip:
            sources = diffusion, clip
        else:
            named = find_preset(preset)
            sources = diffusion or named.diffusion, clip or named.clip
        return NervePipeline.from_pretrained(
            diffusion=sources[0], clip=sources[1], device=device, dtype=dtype, config=settings
        )

    try:
        pipeline: NervePipeline = refusing(load)
    except ModelLoadError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    return pipeline


def say(console: Console, line: str) -> None:
    """One line, not wrapped."""
    console.print(" ".join(line.split()), soft_wrap=True)
