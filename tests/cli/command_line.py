"""Ways to run ``nerve-segment`` in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nerve_kernels import cli


def run(*arguments: object) -> Result:
    """Through typer's runner, in this process."""
    from nerve_kernels.cli.segment_command import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Through the entry point, in this process."""
    with pytest.raises(SystemExit) as leaving:
        cli.main([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    return int(leaving.value.code or 0), seen.out, seen.err


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
