"""Entry point of ``nerve-segment``: errors are one line, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .segmentation.extras import MissingExtraError, require_extra


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-segment`` and leave with its exit code.

    0: every picture was written. 1: some could not be, or a model could not be loaded; the
    rest is written. 2: wrong options. 130: interrupted.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: always.
    """
    try:
        require_extra("typer", "rich", "PIL", "diffusers", "transformers")
    except MissingExtraError as error:
        _leave(str(error), 1)
    import typer

    from .segmentation.command import app

    command = typer.main.get_command(app)
    try:
        # Not standalone: typer would draw its errors as boxes of several lines.
        code = command.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="nerve-segment",
            standalone_mode=False,
        )
    except (typer.Abort, KeyboardInterrupt):
        _leave("interrupted", 130)
    except Exception as error:
        # typer brings its own click or uses the installed one; both mark usage errors alike.
        if not hasattr(error, "format_message"):
            raise
        _leave(error.format_message(), getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: str, code: int) -> None:
    print(f"nerve-segment: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
