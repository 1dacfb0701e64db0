"""Entry point of ``nerve-segment``: errors are one line, never a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .segmentation.extras import MissingExtraError, require_extra

PACKAGE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-segment`` and leave with its exit code.

    0: every picture was written. 1: some could not be, or a model could not be loaded; the
    rest is written. 2: wrong options. 3: a fault of this program. 130: interrupted.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: always.
    """
    try:
        require_extra("typer", "rich", "PIL", "diffusers", "transformers")
        code = _run(arguments)
    except MissingExtraError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("interrupted; the files written so far are whole", 130)
    except MemoryError:
        _leave("out of memory; close other programs, or give smaller pictures one by one", 1)
    except OSError as error:  # each picture's own are reported with it, so this is the output's
        _leave(f"cannot go on: {error}", 1)
    except Exception as error:
        _leave(f"a fault of this program, please report it: {_describe(error)}", 3)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    from .segmentation.command import app
    from .segmentation.loading import ModelLoadError

    command = typer.main.get_command(app)
    try:
        # Not standalone: typer would draw its errors as boxes of several lines.
        code = command.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="nerve-segment",
            standalone_mode=False,
        )
    except typer.Abort:
        raise KeyboardInterrupt from None
    except ModelLoadError as error:
        _leave(str(error), 1)
    except Exception as error:
        # typer brings its own click or uses the installed one; both mark usage errors alike.
        if not hasattr(error, "format_message"):
            raise
        _leave(error.format_message(), getattr(error, "exit_code", 2))
    if code == 130:  # what newer typers make of an interrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _describe(error: Exception) -> str:
    """The error, and the last line of this package that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    place = f" at {Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _leave(message: str, code: int) -> None:
    from .segmentation.plain import plain_line

    print(f"nerve-segment: {plain_line(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
