"""Rung 8, on a machine with a GPU: ``make gpu-check``. Under eight minutes, without network, one table last.

Builds the extensions, runs the tests marked ``gpu``, compute-sanitizer on small shapes, captures and replays CUDA
graphs, and measures against peers. It needs an interpreter with torch, Triton and pytest and installs nothing:
``make gpu-check PYTHON=python3``. Log, CSV and the table go to one folder.

Without a GPU it says so and dry-runs all it can: imports, the build, the arguments and compilation of every Triton
kernel for sm_90, nvcc for sm_90, the collection of the GPU tests, and the benchmarks' own code at a small size.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from verification.checks import ROOT, Check, module, path, program, python, run_all

LIMIT_SECONDS = 8 * 60 - 15
BENCH_SECONDS = 110
TRITON_SUBSET = ("--targets", "sm_90", "--head-sizes", "40", "--precisions", "fp16", "fp32")
# where torch's allocator keeps freed memory, a read past the end of a tensor is inside an allocation
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "minversion=7.0")
OPTIONAL_PACKAGES = ("pytest_benchmark", "hypothesis", "rich", "matplotlib", "scipy", "torch_geometric")
MARKED = re.compile(r"^(?:@|\s+|pytestmark = )pytest\.mark\.gpu\b", re.MULTILINE)
METADATA = "Metadata-Version: 2.1\nName: nerve-kernels\nVersion: {}\n"


def gpu_tests() -> list[str]:
    """Files with a test marked ``gpu``: others may need packages that this machine does not have."""
    files = sorted(ROOT.glob("tests/**/test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if MARKED.search(file.read_text("utf-8"))]


def build_check(architecture: str) -> Check:
    """The extensions into src/, for one architecture where there is a GPU."""
    environment = {"TORCH_CUDA_ARCH_LIST": architecture, "FORCE_CUDA": "1"} if architecture else {}
    return Check(
        "build of the extensions in place",
        python("setup.py", "-q", "build_ext", "--inplace"),
        environment=environment,
        needs=(module("setuptools"), module("torch")),
        limit_seconds=150,
    )


def checks_with_gpu(folder: Path, architecture: str, *, prebuilt: bool = False) -> list[Check]:
    """What a GPU is needed for."""
    graphs, tests = "tests/gpu/test_cuda_graphs.py", gpu_tests()
    small = python("-m", "verification.small_shapes")
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all", "--tool"]
    needs = (program("compute-sanitizer"),)
    carried = Check(
        "prebuilt _C_cuda: its torch and architecture", python("-m", "verification.prebuilt"), limit_seconds=60
    )
    return [
        carried if prebuilt else build_check(architecture),
        Check("imports", python("-m", "verification.gpu_imports"), limit_seconds=60),
        Check("tests marked gpu", python(*PYTEST, *(t for t in tests if t != graphs)), limit_seconds=130),
        Check("capture and replay of CUDA graphs", python(*PYTEST, graphs), limit_seconds=40),
        Check("memcheck", [*sanitizer, "memcheck", *small], "", SANITIZED, needs, True, 70),
        Check("racecheck", [*sanitizer, "racecheck", *small], "", SANITIZED, needs, True, 70),
        Check(
            "benchmarks against peers",
            python("-m", "benchmarks.gpu_bench", "--out", str(folder / "results.csv"), "--seconds", str(BENCH_SECONDS)),
            limit_seconds=BENCH_SECONDS + 50,
        ),
    ]


def checks_without_gpu(folder: Path) -> list[Check]:
    """What can be tried without one."""
    small = python("-m", "verification.small_shapes", "--device", "cpu", "--backends", "eager")
    dry_run = python("-m", "benchmarks.gpu_bench", "--dry-run", "--out", str(folder / "dry_run.csv"))
    compiled = python(
        "-m", "verification.static_grid", *TRITON_SUBSET, "--jobs", "2", "--out", str(folder / "gpu_static.csv")
    )
    nvcc = python("-m", "verification.nvcc", "--architectures", "90")
    return [
        build_check(""),
        Check("imports", python("-m", "verification.gpu_imports")),
        Check(
            "arguments and compilation of every Triton kernel for sm_90",
            compiled,
            needs=(module("triton"),),
            optional=True,
        ),
        Check("nvcc for sm_90, no spills", nvcc, needs=(program("nvcc"), path("csrc/cuda/*.cu")), optional=True),
        Check("collection of the tests marked gpu", python(*PYTEST, "--collect-only", *gpu_tests())),
        Check("what compute-sanitizer would run, on the CPU", small),
        Check("the benchmarks' own code, on the CPU", dry_run, limit_seconds=150),
    ]


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
    if cuda:
        checks = checks_with_gpu(folder, "{}.{}".format(*torch.cuda.get_device_capability()), prebuilt=options.prebuilt)
    else:
        checks = checks_without_gpu(folder)
    return run_all(checks, header=describe(cuda), log_path=folder / "log.txt", limit=LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
