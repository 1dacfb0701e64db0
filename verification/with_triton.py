"""A module of ``verification`` with another Triton than the one installed: ``... with_triton 3.6.0 static_grid``.

That Triton is downloaded once into ``~/.cache/nerve_kernels`` (``XDG_CACHE_HOME`` moves it), beside torch's headers,
and comes first on the path of a process of its own. Where it cannot be fetched this exits with 77, which the table
shows as not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from verification import torch_headers
from verification.checks import ROOT, UNAVAILABLE

SHOW = "import sys, triton; sys.exit(triton.__version__.split('+')[0] != sys.argv[1])"


def folder_of(version: str) -> Path:
    """Where a Triton of this version can be imported from, fetched where it is not there yet."""
    target = torch_headers.CACHE / f"triton-{version}"
    if not target.exists():
        torch_headers.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=torch_headers.CACHE) as folder:
            partial = Path(folder) / "triton"
            torch_headers.pip(
                "install",
                "--no-deps",
                "--no-compile",
                "--only-binary=:all:",
                "--target",
                str(partial),
                f"triton=={version}",
            )
            shutil.rmtree(partial / "triton" / "profiler", ignore_errors=True)  # nothing here profiles
            partial.rename(target)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The module's exit code; 77 where that Triton is not to be had, 1 where another is imported."""
    version, module, *options = sys.argv[1:] if arguments is None else arguments
    try:
        folder = folder_of(version)
    except torch_headers.CannotFetchError as error:
        print(f"skipped: cannot be fetched: {error}")
        return UNAVAILABLE
    path = os.pathsep.join([str(folder), *(item for item in sys.path if item)])
    environment = os.environ | {"PYTHONPATH": path}
    if subprocess.run([sys.executable, "-c", SHOW, version], env=environment, check=False, cwd=ROOT).returncode:
        print(f"error: triton: expected {version}, which lies in {folder}, got another; remove that folder")
        return 1
    print(f"with Triton {version}", flush=True)
    command = [sys.executable, "-m", f"verification.{module}", *options]
    return subprocess.run(command, env=environment, check=False, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
