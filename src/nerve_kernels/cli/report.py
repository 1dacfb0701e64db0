"""What ``nerve-segment`` says: for people, as JSON, or errors only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nerve_kernels import available_backends
from nerve_kernels.segmentation.loading import LoadedPart
from nerve_kernels.segmentation.phases import Phase, summed
from nerve_kernels.segmentation.result import Segmentation

from .plain import plain_line


class Written(NamedTuple):
    """An image that was segmented, and the files that say so, the overlay first where there is one."""

    file: Path
    segmentation: Segmentation
    files: dict[str, Path]


class Report:
    """Results go to standard output, everything else to standard error.

    Args:
        quiet: only errors, and JSON where it is asked for.
        as_json: a line of JSON for each image in place of the overlay's path.
        explain: the time of each phase, and what it ran on.
    """

    def __init__(self, *, quiet: bool, as_json: bool, explain: bool) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._explain = explain
        # File names are shown as they are: no markup, no emoji codes.
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.failures = 0
        self._checkpoints: list[dict[str, Any]] = []

    def progress(self) -> Progress:
        """The bar, which stands still where it is not wanted."""
        return Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            # What goes to a file or a pipe must not end up on the terminal's bar.
            redirect_stdout=sys.stdout.isatty(),
            disable=self._quiet,
        )

    def loaded(self, parts: Sequence[LoadedPart]) -> None:
        """Which files of which checkpoints were read, where an explanation is asked for."""
        by_source: dict[tuple[str, str, str | None], dict[str, None]] = {}
        for part in parts:
            files = by_source.setdefault((part.argument, part.source, part.revision), {})
            files.update(dict.fromkeys(part.files))
        self._checkpoints = [
            {"argument": argument, "source": source, "revision": revision, "files": list(files)}
            for (argument, source, revision), files in by_source.items()
        ]
        if self._explain and not self._quiet:
            for one in self._checkpoints:
                revision = "" if one["revision"] is None else f" (revision {one['revision']})"
                self._say(plain_line(f"{one['argument']}: {one['source']}{revision}: {', '.join(one['files'])}"))

    def note(self, message: str) -> None:
        """One line about what is done otherwise than asked for."""
        if not self._quiet:
            self._say(plain_line(message))

    def failed(self, message: str, file: Path | None = None) -> None:
        """One line about what could not be done; it is counted."""
        self.failures += 1
        self._say(plain_line(message))
        if self._as_json:
            self._print_json({"picture": None if file is None else str(file), "error": plain_line(message)})

    def done(self, done: Written, phases: Sequence[Phase], models: str) -> None:
        """An image was segmented and its results are written."""
        file, written = done.file, done.files
        phases = summed(list(phases))
        if self._explain and not self._quiet:
            self._explain_phases(file, phases, models)
        if self._as_json:
            entry: dict[str, Any] = {
                "picture": str(file),
                "files": {name: str(path) for name, path in written.items()},
                "summary": json.loads(written["summary"].read_bytes())
                if "summary" in written
                else done.segmentation.summary(),
            }
            if self._explain:
                entry["models"] = models
                entry["checkpoints"] = self._checkpoints
                entry["stages"] = [
                    {"stage": one.name, "seconds": round(one.seconds, 6), "operators": dict(one.operators)}
                    for one in phases
                ]
            self._print_json(entry)
        elif not self._quiet:
            # As bytes: a name need not be text in the terminal's encoding.
            typer.echo(os.fsencode(next(iter(written.values()))))

    def _explain_phases(self, file: Path, phases: Sequence[Phase], models: str) -> None:
        total = sum(one.seconds for one in phases)
        self._say(plain_line(f"{file}: {total:.3f} s"))
        for one in phases:
            self._say(f"  {one.name:<18} {one.seconds:8.3f} s   {_ran_on(one, models)}".rstrip())
        self._say(
            f"  backends here: {', '.join(available_backends())}; why not others: "
            "python -c 'import nerve_kernels; nerve_kernels.show_config()'"
        )

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    @staticmethod
    def _print_json(entry: dict[str, Any]) -> None:
        typer.echo(json.dumps(entry, allow_nan=False))


def _ran_on(one: Phase, models: str) -> str:
    if one.operators:
        return ", ".join(f"{operator}: {backend}" for operator, backend in one.operators)
    return models if one.name.startswith(("CLIP", "Stable")) else ""
