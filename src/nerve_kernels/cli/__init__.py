"""The commands on images: what they need, their exit codes; errors are one line, never a traceback."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from nerve_kernels.segmentation.extras import MissingExtraError, require_extra

PACKAGE = Path(__file__).parents[1]
SEGMENTATION = ("typer", "rich", "PIL", "diffusers", "transformers")
EVALUATION = ("torchmetrics", "matplotlib")
BULK = ("ray", "pyarrow", "pycocotools", "skimage")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-segment`` and leave with its exit code.

    0: every image was written. 1: some could not be, or a model could not be loaded; the
    rest is written. 2: wrong options. 3: a fault of this program. 130: interrupted.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: always.
    """
    _run("nerve-segment", "nerve_kernels.cli.segment_command", arguments)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-evaluate`` and leave with its exit code.

    0: scored; images that could not be read are counted in the report. 1: a model could not be
    loaded. 2: wrong options, a wrong root, or a folder that holds another run. 130: interrupted.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: always.
    """
    _run("nerve-evaluate", "nerve_kernels.cli.evaluate_command", arguments, evaluation=EVALUATION)


def ablate(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-ablate``: ``nerve-evaluate`` with the variants of the usual ablation, features shared.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: always.
    """
    given = sys.argv[1:] if arguments is None else arguments
    _run("nerve-ablate", "nerve_kernels.cli.evaluate_command", ["--ablate", *given], evaluation=EVALUATION)


def bulk(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-bulk``, its ``export`` or its ``query``, and leave with its exit code, as ``nerve-segment`` does.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: always.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["export"], ["query"]):
        _run(f"nerve-bulk {given[0]}", f"nerve_kernels.cli.bulk_{given[0]}_command", given[1:], bulk=BULK)
    _run("nerve-bulk", "nerve_kernels.cli.bulk_command", given, bulk=BULK)


def _run(program: str, module: str, arguments: Sequence[str] | None, **extras: Sequence[str]) -> NoReturn:
    _open_standard_streams()
    try:
        require_extra(*SEGMENTATION)
        for extra, libraries in extras.items():
            require_extra(*libraries, extra=extra)
        code = _command(program, module, arguments)
        sys.stdout.flush()  # what is still buffered may not fit the disk either
    except MissingExtraError as error:
        _leave(program, str(error), 1)
    except KeyboardInterrupt:
        _leave(program, "interrupted; the files written so far are whole", 130)
    except MemoryError:
        _leave(program, "out of memory; close other programs, or give smaller images one by one", 1)
    except OSError as error:  # each image's own are reported with it, so this is the output's
        _leave(program, f"cannot go on: {error}", 1)
    except Exception as error:
        _leave(program, f"a fault of this program, please report it: {_describe(error)}", 3)
    sys.exit(code)


def _command(program: str, module: str, arguments: Sequence[str] | None) -> int:
    import typer

    from nerve_kernels.segmentation.finite import NotFiniteError
    from nerve_kernels.segmentation.loading import ModelLoadError

    command = typer.main.get_command(importlib.import_module(module).app)
    try:
        # Not standalone: typer would draw its errors as boxes of several lines.
        code = command.main(
            args=list(arguments) if arguments is not None else None,
            prog_name=program,
            standalone_mode=False,
        )
    except typer.Abort:
        raise KeyboardInterrupt from None
    except (ModelLoadError, NotFiniteError) as error:
        _leave(program, str(error), 1)
    except Exception as error:
        # typer brings its own click or uses the installed one; both mark usage errors alike.
        if not hasattr(error, "format_message"):
            raise
        _leave(program, error.format_message(), getattr(error, "exit_code", 2))
    if code == 130:  # what newer typers make of an interrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _open_standard_streams() -> None:
    """Where a shell has closed them (``>&-``), what is written to them is lost, and no file takes their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 (open for as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def _describe(error: Exception) -> str:
    """The error, and the last line of this package that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    place = f" at {Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _leave(program: str, message: str, code: int) -> NoReturn:
    from .plain import plain_line

    # where errors cannot be written either, the exit code is all that is left to say it
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: {plain_line(message)}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        _let_go_of(stream)
    sys.exit(code)


def _let_go_of(stream: TextIO) -> None:
    """Python writes what is buffered when it ends, and would leave with 120 in place of our code where that fails."""
    try:
        stream.flush()
    except (OSError, ValueError):  # full, or closed
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
