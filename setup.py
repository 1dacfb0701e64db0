"""Builds the native ops in csrc/; everything else about the package is in pyproject.toml.

The extension is compiled against torch's stable ABI, so one binary serves every torch from 2.10 on, and it uses no
Python API, so one wheel (abi3) serves every Python from 3.11 on. An install never fails because of it: where it cannot
be compiled, the package is installed as pure Python, with one warning, and the reason is kept in the package for
`nerve_kernels.show_config()`.

Environment variables: CXX and CXXFLAGS choose the C++ compiler and add flags. Where csrc/cuda/ holds kernels they are
compiled too if torch is a CUDA build and nvcc is found, or always with FORCE_CUDA=1; CUDA_HOME says where nvcc is and
TORCH_CUDA_ARCH_LIST for which GPUs to compile ("8.0;9.0+PTX").
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import setuptools

# With --no-build-isolation nobody else checks this, and an older one fails with messages that do not say so.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"error: nerve-kernels needs setuptools >= 77, got {setuptools.__version__}: pip install -U setuptools")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
MIN_PYTHON_TAG = "cp311"
STABLE_PYTHON_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none yet
MIN_TORCH = (2, 10)
STABLE_ABI_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
FAILURE_NOTE = "_build_failure.txt"  # read by nerve_kernels._native

CPU_EXTENSION = "nerve_kernels._C"
CUDA_EXTENSION = "nerve_kernels._C_cuda"


class CannotBuildError(Exception):
    """The native ops cannot be compiled here; the message says why."""


def import_torch() -> Any:
    """The torch to compile against."""
    try:
        import torch
    except Exception as error:  # a torch that is there but broken must not break the install either
        raise CannotBuildError(f"torch cannot be imported in the build environment ({error})") from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        raise CannotBuildError(f"torch {torch.__version__} is older than 2.10, the first with the ABI used here")
    return torch


def find_nvcc() -> Path | None:
    """nvcc in CUDA_HOME if that is set, else on the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        return nvcc if nvcc.exists() else None
    found = shutil.which("nvcc")
    return Path(found) if found else None


def cuda_forced() -> bool:
    """Whether the CUDA ops were asked for: then a build without them is a failure."""
    return os.environ.get("FORCE_CUDA") == "1"


def cuda_wanted(torch: Any) -> bool:
    """Whether to compile csrc/cuda/: there is something to compile, and a CUDA torch with nvcc, or a request."""
    if not any(ROOT.glob("csrc/cuda/*.cu")):
        return False
    if cuda_forced():
        return True
    return torch.version.cuda is not None and find_nvcc() is not None


def architecture_flags() -> list[str]:
    """nvcc's -gencode for each GPU generation wanted; "+PTX" adds code that later generations translate."""
    flags = []
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
    for architecture in wanted.replace(",", ";").replace(" ", ";").split(";"):
        if not architecture:
            continue
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if architecture.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def explain(error: Exception) -> str:
    """Why a build failed, in one line. setuptools wraps what the compiler's process raised."""
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    if isinstance(cause, FileNotFoundError) and cause.filename:
        return f"there is no {cause.filename}"
    if isinstance(cause, subprocess.CalledProcessError):
        return f"{Path(cause.cmd[0]).name} failed with exit code {cause.returncode}"
    return " ".join(str(cause).split()) or type(cause).__name__


class BuildNativeOps(build_ext):
    """Compiles the extensions; where that fails, leaves a pure Python package and says so once."""

    extensions: list[Any]

    def run(self) -> None:
        note = self._package_directory() / FAILURE_NOTE
        note.unlink(missing_ok=True)
        try:
            self._configure(import_torch())
            super().run()
        except Exception as error:
            # Any failure at all (no compiler, a broken one, no torch, a full disk) must leave an install that works,
            # unless the native ops were asked for.
            reason = explain(error)
            self._remove_leftovers()
            if cuda_forced():
                sys.exit(f"error: FORCE_CUDA=1, but the native ops cannot be built: {reason}")
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(reason + "\n", encoding="utf-8")
            print(
                f"warning: nerve-kernels is installed as pure Python, without its native ops: {reason}. Everything "
                "works on plain PyTorch, only more slowly. To have them, install a C++20 compiler (g++ or clang) and "
                "torch >= 2.10, then reinstall with `pip install -v --no-build-isolation ...` to see the compiler's "
                "messages.",
                file=sys.stderr,
            )

    def build_extension(self, ext: Any) -> None:
        if ext.name == CUDA_EXTENSION:
            self._build_with_nvcc(ext)
            return
        compile_one_by_one = self.compiler.compile

        def compile_side_by_side(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                compiled = pool.map(lambda source: compile_one_by_one([source], **options), sources)
                return [file for files in compiled for file in files]

        self.compiler.compile = compile_side_by_side
        super().build_extension(ext)

    def _configure(self, torch: Any) -> None:
        """Fill in what depends on torch, which setup() itself must not import: metadata are read without it."""
        torch_root = Path(torch.__file__).parent
        with_cuda = cuda_wanted(torch)
        self.extensions[:] = [ext for ext in self.extensions if with_cuda or ext.name != CUDA_EXTENSION]
        for extension in self.extensions:
            if os.name == "posix":
                # as system headers, so that warnings are about our own code
                extension.extra_compile_args += ["-isystem", str(torch_root / "include")]
            else:
                extension.include_dirs.append(str(torch_root / "include"))
            extension.library_dirs.append(str(torch_root / "lib"))
            libraries = ["torch", "torch_cpu"] + ["torch_cuda"] * (extension.name == CUDA_EXTENSION)
            extension.libraries += [name for name in libraries if any(torch_root.glob(f"lib/*{name}.*"))]

    def _build_with_nvcc(self, ext: Extension) -> None:
        """One nvcc command: compile every .cu for every architecture and link them."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise CannotBuildError("there is no nvcc in CUDA_HOME/bin or on the PATH")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [str(nvcc), "-shared", *architecture_flags(), *ext.extra_compile_args, *ext.sources]
        command += ["-o", str(target)]
        command += [f"-L{directory}" for directory in ext.library_dirs] + [f"-l{library}" for library in ext.libraries]
        print(" ".join(command))
        try:
            subprocess.run(command, check=True, cwd=ROOT)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(error) from error

    def _package_directory(self) -> Path:
        """Where nerve_kernels will be imported from: the build tree, or the sources of an editable install."""
        if self.inplace:
            return ROOT / "src" / "nerve_kernels"
        return Path(self.build_lib).resolve() / "nerve_kernels"

    def _remove_leftovers(self) -> None:
        """An extension of an earlier build must not pass for one of these sources."""
        for extension in self.extensions:
            name = Path(self.get_ext_filename(extension.name)).name
            (self._package_directory() / name).unlink(missing_ok=True)
        self.extensions = []
        self.distribution.ext_modules = []


class WheelOfWhatWasBuilt(bdist_wheel):
    """Tags the wheel after the build, when it is known whether there is anything native in it."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        if self.root_is_pure:
            self.py_limited_api = False
        self.skip_build = True
        super().run()


def cpu_extension() -> Extension:
    """csrc/ops.cpp and csrc/cpu/. Instruction sets are chosen when called, so there is no -march here."""
    # those that take longest first: the kernels, compiled for each instruction set
    files = sorted(ROOT.glob("csrc/cpu/**/*.cpp"), key=lambda path: (path.parent.name != "kernels", str(path)))
    sources = [*files, ROOT / "csrc" / "ops.cpp"]
    flags = ["/std:c++20", "/O2"]
    if os.name == "posix":
        flags = ["-std=gnu++20", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0"]
    return Extension(
        CPU_EXTENSION,
        sources=[str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/**/*.h")],
        extra_compile_args=[*flags, STABLE_ABI_FLAG],
        language="c++",
        py_limited_api=STABLE_PYTHON_ABI,
    )


def cuda_extensions() -> list[Extension]:
    """csrc/cuda/, a library of its own, so that the CPU ops load where there is no CUDA. None while it is empty."""
    sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
    extension = Extension(
        CUDA_EXTENSION,
        sources=[str(path.relative_to(ROOT)) for path in sources],
        extra_compile_args=[
            "-O3",
            "-std=c++20",
            "-Xcompiler",
            "-fPIC,-fvisibility=hidden",
            STABLE_ABI_FLAG,
            "-DUSE_CUDA",
        ],
        optional=not cuda_forced(),  # unless asked for, its failure costs only itself
        py_limited_api=STABLE_PYTHON_ABI,
    )
    return [extension] if sources else []


setup(
    ext_modules=[cpu_extension(), *cuda_extensions()],
    cmdclass={"build_ext": BuildNativeOps, "bdist_wheel": WheelOfWhatWasBuilt},
    options={"bdist_wheel": {"py_limited_api": MIN_PYTHON_TAG}} if STABLE_PYTHON_ABI else {},
)
