"""The command ``nerve-bulk export``: files for annotation tools from the rows of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from nerve_kernels._operators.checks import refusal
from nerve_kernels.bulk.destination import Destination
from nerve_kernels.bulk.export import export
from nerve_kernels.segmentation.annotations.formats import FORMATS
from nerve_kernels.segmentation.text_image.prompts import split_words

from .options import as_usage_error

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command()
def export_rows(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The destination of nerve-bulk: a folder or s3://…")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the files.")],
    formats: Annotated[str, typer.Option("--format", "-f", help=f"Of: {', '.join(FORMATS)}.")] = "coco",
) -> None:
    """Write the masks of all rows as coco.json, labelme/NAME.json or yolo/labels/NAME.txt, without rows with errors."""
    names = tuple(dict.fromkeys(split_words(formats)))
    if not names or not set(names) <= set(FORMATS):
        raise typer.BadParameter(refusal("--format", f"some of {', '.join(FORMATS)}", repr(formats)))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise typer.BadParameter(refusal("--to", "an empty folder", f"{to}, which has something in it"))
    count = as_usage_error(export, Destination(run), to, names)
    typer.echo(os.fsencode(to))
    typer.echo(f"{count} images", err=True)
