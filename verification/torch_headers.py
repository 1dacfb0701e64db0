"""csrc/, CPU and CUDA, compiled against the headers of a torch that is not installed: ``... torch_headers 2.10.0``.

The headers come from torch's wheel, downloaded once into ``~/.cache/nerve_kernels`` (``XDG_CACHE_HOME`` moves it), of
which nothing else is kept. ``newest`` is the newest torch on the package index. Where they cannot be fetched it exits
with 77, which the table shows as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verification.checks import ROOT, UNAVAILABLE
from verification.nvcc import compile_file

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nerve_kernels"
# Headers are the same on every platform, those for CUDA included, and the wheels for macOS are the smallest: 80 to
# 140 MB. Constraints that pip is configured with are those of an installation, which this is not.
WHEEL = ("--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp")
WHEEL += ("--platform", "macosx_14_0_arm64", "--platform", "macosx_11_0_arm64")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
NEEDED = ("torch/csrc/stable/tensor.h", "torch/headeronly/util/shim_utils.h", "c10/cuda/CUDAStream.h")
FLAGS = ("-std=gnu++20", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
FLAGS += ("-DTORCH_TARGET_VERSION=0x020a000000000000",)


class CannotFetchError(Exception):
    """The package index cannot be reached or has no such torch; the message says why."""


def pip(*arguments: str) -> str:
    """What pip prints."""
    command = [*PIP, *arguments]
    environment = os.environ | {"PIP_CONSTRAINT": os.devnull}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise CannotFetchError(lines[0].removeprefix("ERROR: "))
    return finished.stdout


def newest_torch() -> str:
    """The newest release on the package index, by what pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = pip("install", "--dry-run", "--ignore-installed", "--report", "-", "--target", folder, *WHEEL, "torch")
    return str(json.loads(report)["install"][0]["metadata"]["version"])


def headers_of(version: str) -> Path:
    """The folder of torch's headers, fetched where it is not there yet."""
    target = CACHE / f"torch-{version}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            pip("download", "--no-cache-dir", "--dest", folder, *WHEEL, f"torch=={version}")
            (wheel,) = Path(folder).glob("torch-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith("torch/include/")]
                archive.extractall(Path(folder) / "extracted", names)
            (Path(folder) / "extracted").rename(target)
    include = target / "torch" / "include"
    for name in NEEDED:
        if not (include / name).is_file():
            raise CannotFetchError(f"torch {version} has no header {name}")
    return include


def compile_cpu(source: Path, include: Path) -> str:
    """What the compiler says of a file that does not compile, else nothing."""
    command = ["g++", *FLAGS, "-isystem", str(include), str(source)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stderr if finished.returncode else ""


def compile_cuda(source: Path, include: Path) -> str:
    """The same by nvcc, for the GPUs of the image that torch 2.11 comes with."""
    finished = compile_file(source, ["90"], Path(os.devnull), include)
    return finished.stdout + finished.stderr if finished.returncode else ""


def compile_all(include: Path, jobs: int, folder: Path = ROOT / "csrc") -> dict[Path, str]:
    """Every source that does not compile, with what was said of it."""
    sources = [path for path in sorted(folder.rglob("*")) if path.suffix in (".cpp", ".cu")]
    with ThreadPoolExecutor(jobs) as pool:
        said = pool.map(lambda path: (compile_cuda if path.suffix == ".cu" else compile_cpu)(path, include), sources)
    found = dict(zip(sources, said, strict=True))
    print(f"{len(found)} files of {folder.name}/ compiled against {include}")
    return {source: messages for source, messages in found.items() if messages}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where everything compiles, 1 where something does not, 77 where there are no headers to be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="like 2.11.0, or newest")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        version = newest_torch() if options.version == "newest" else options.version
        include = headers_of(version)
    except CannotFetchError as error:
        print(f"skipped: cannot be fetched: {error}")
        return UNAVAILABLE
    failed = compile_all(include, options.jobs)
    for source, messages in failed.items():
        print(f"{source}:\n{messages}")
    print(f"torch {version}: {len(failed)} files do not compile")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
