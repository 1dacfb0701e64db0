"""Rung 8, on a machine with a GPU: ``make gpu-check``. Under eight minutes, without network, one table last.

Builds the extensions, compiles all Triton kernels, runs the tests marked ``gpu``, measures against peers, and runs
compute-sanitizer on small shapes. It needs an interpreter with torch, Triton and pytest and installs nothing:
``make gpu-check PYTHON=python3``. Log, CSV, outcomes and the table go to one folder; a stage that is killed has left
there what it had.

Without a GPU it says so and runs the same stages on the CPU at a small size, all but the step that needs the GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

from verification.checks import ROOT, Check, module, path, program, python, run_all

LIMIT_SECONDS = 8 * 60
BENCH_SECONDS = 120
DRY_RUN_SECONDS = 1200
NO_GPU = " (no GPU)"
# where torch's allocator keeps freed memory, a read past the end of a tensor is inside an allocation
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
OPTIONAL_PACKAGES = ("pytest_benchmark", "hypothesis", "rich", "matplotlib", "scipy", "torch_geometric")
METADATA = "Metadata-Version: 2.1\nName: nerve-kernels\nVersion: {}\n"


def build_check(architecture: str) -> Check:
    """The extensions into src/, for one architecture where there is a GPU."""
    environment = {"TORCH_CUDA_ARCH_LIST": architecture, "FORCE_CUDA": "1"} if architecture else {}
    return Check(
        "build of the extensions in place",
        python("setup.py", "-q", "build_ext", "--inplace"),
        environment=environment,
        needs=(module("setuptools"), module("torch")),
        limit_seconds=80,
    )


def stages(folder: Path, architecture: str = "", *, prebuilt: bool = False) -> list[Check]:
    """The stages, in their order; without an ``architecture`` the same, on the CPU at a small size.

    Each keeps its own time whatever the others take, and writes what it has while it has it. Those that only look
    closer come last, and may be missing.
    """
    device = ("--device", "cuda" if architecture else "cpu")
    rows, why = folder / "results.csv" if architecture else folder / "dry_run.csv", "" if architecture else NO_GPU
    seconds = BENCH_SECONDS if architecture else DRY_RUN_SECONDS
    few = () if architecture else ("--small", "--jobs", "2")
    small = python("-m", "verification.small_shapes", *device, *(() if architecture else ("--backends", "eager")))
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all", "--tool"]
    needs = (program("compute-sanitizer"),) if architecture else ()
    carried = Check(
        "prebuilt _C_cuda: its torch and architecture", python("-m", "verification.prebuilt"), limit_seconds=30
    )
    return [
        carried if prebuilt and architecture else build_check(architecture),
        Check("imports", python("-m", "verification.gpu_imports"), limit_seconds=15),
        Check(
            f"Triton kernels compiled and counted{why and ', for sm_90, a few'}{why}",
            python("-m", "verification.compile_kernels", *device, *few, "--out", str(folder / "kernels.csv")),
            needs=(module("triton"),),
            optional=True,  # tests and benchmarks compile what they need
            limit_seconds=45,
        ),
        Check(
            f"tests marked gpu{why and ': collected and skipped'}{why}",
            python("-m", "verification.gpu_tests", "--out", str(folder)),
            limit_seconds=90,
            grace_seconds=5,
        ),
        Check(
            f"benchmarks against peers{why and ', on the CPU'}{why}",
            python("-m", "benchmarks.gpu_bench", *device, "--out", str(rows), "--seconds", str(seconds)),
            limit_seconds=BENCH_SECONDS + 20,
            grace_seconds=2,
        ),
        *(
            Check(
                f"{tool}{why and ': what it would run, on the CPU'}{why}",
                [*sanitizer, tool, *small] if architecture else small,
                environment=SANITIZED,
                needs=needs,
                optional=True,
                limit_seconds=30,
            )
            for tool in ("memcheck", "racecheck")
        ),
        Check(
            f"six kernels under ncu{why and ': planned'}{why}",
            python("-m", "verification.six_kernels", *device, "--ncu", str(folder / "ncu.csv")),
            needs=(module("triton"), *((program("ncu"),) if architecture else ())),
            optional=True,
            limit_seconds=20,
        ),
        Check(
            "what was measured, and the bars",
            python("-m", "benchmarks.gpu_bench", "--table", str(rows)),
            limit_seconds=10,
        ),
        Check(
            f"sweep of tiles{why and ': planned, two compiled'}{why}",
            python("-m", "verification.six_kernels", *device, "--sweep", str(folder / "sweep.csv")),
            needs=(module("triton"),),
            optional=True,
            limit_seconds=20,
        ),
    ]


def checks(folder: Path, architecture: str = "", *, prebuilt: bool = False) -> list[Check]:
    """The stages within their limits on a GPU; on the CPU of a developer's machine, and what it can besides."""
    found = stages(folder, architecture, prebuilt=prebuilt)
    if architecture:
        return found
    nvcc = python("-m", "verification.nvcc", "--architectures", "90")
    needs = (program("nvcc"), path("csrc/cuda/*.cu"))
    found.insert(1, Check("nvcc for sm_90, no spills", nvcc, needs=needs, optional=True))
    return [replace(check, limit_seconds=DRY_RUN_SECONDS) for check in found]


def environment_of_checks(folder: Path) -> dict[str, str]:
    """The sources as they are, importable without being installed."""
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        importlib.metadata.version("nerve-kernels")
    except importlib.metadata.PackageNotFoundError:
        # the package asks for its own version, which an install would have written down
        version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        target = folder / "metadata" / "nerve_kernels.dist-info"
        target.mkdir(parents=True, exist_ok=True)
        (target / "METADATA").write_text(METADATA.format(version[1] if version else "0"), encoding="utf-8")
        variables["PYTHONPATH"] += os.pathsep + str(target.parent)
    return variables


def describe(cuda: bool) -> list[str]:
    """Versions, and which of the packages that could be used are not there."""
    import torch

    triton = "no triton"
    if importlib.util.find_spec("triton") is not None:
        import triton as found

        triton = f"triton {found.__version__}"
    missing = [name for name in OPTIONAL_PACKAGES if importlib.util.find_spec(name) is None]
    where = (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if cuda else "NO GPU VISIBLE TO TORCH: a dry run"
    )
    lines = [f"{where}; python {platform.python_version()}, torch {torch.__version__}, {triton}"]
    return lines + ([f"not installed, and done without: {', '.join(missing)}"] if missing else [])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder (default benchmarks/results/gpu_check/<gpu>-<date>)")
    parser.add_argument("--prebuilt", action="store_true", help="use the _C_cuda beside the sources, build nothing")
    options = parser.parse_args()
    for name in ("torch", "pytest"):
        if importlib.util.find_spec(name) is None:
            print(f"error: {sys.executable} has no {name}; choose an interpreter that has: make gpu-check PYTHON=...")
            return 1
    import torch

    cuda = torch.cuda.is_available()
    name = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower()).strip("_") if cuda else "dry_run"
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    # a dry run leaves nothing that one might take for a result
    default = ROOT / "benchmarks" / "results" / "gpu_check" / f"{name}-{date}" if cuda else ROOT / "build" / "gpu_check"
    folder = (options.out or default).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment_of_checks(folder))
    architecture = "{}.{}".format(*torch.cuda.get_device_capability()) if cuda else ""
    found = checks(folder, architecture, prebuilt=options.prebuilt)
    limit = LIMIT_SECONDS if cuda else math.inf
    return run_all(found, header=describe(cuda), log_path=folder / "log.txt", limit=limit)


if __name__ == "__main__":
    sys.exit(main())
