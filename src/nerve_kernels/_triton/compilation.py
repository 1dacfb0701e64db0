"""Compiles launches that are not run; ``python -m nerve_kernels._triton.compilation`` is one of several processes.

A launch travels as one line of JSON. What is compiled lands in Triton's cache on disk, under the key that the launch
will look for when it is run: every process goes through the same code of Triton as the launch, with a driver that names
the target and has no GPU. So none of them needs one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from .launch import Launch

PACKAGE_PARENT = Path(__file__).parents[2]
TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
Target = tuple[str, int | str, int]
"""As Triton names a GPU: ("cuda", 90, 32)."""


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes that Triton would derive when it runs this launch."""
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    attributes: dict[tuple[int, ...], Any] = {}
    for position, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[name]
        if isinstance(value, Tensor):
            signature[name], divisible = f"*{TYPE_NAMES[value.dtype]}", True  # torch's allocator aligns to more than 16
        elif isinstance(value, float):
            signature[name], divisible = "fp32", False
        elif value == 1 and not parameter.do_not_specialize:
            signature[name], constants[name], divisible = "constexpr", 1, False
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            divisible = value % 16 == 0 and not parameter.do_not_specialize
        if divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def distinct(launches: Iterable[Launch]) -> list[Launch]:
    """One launch for each kernel that Triton would compile, in their order; those of no programs need none."""
    found: dict[str, Launch] = {}
    for launch in launches:
        if launch.programs:
            key = (launch.kernel.__module__, launch.kernel.__name__, *specialised(launch), launch.options())
            found.setdefault(repr(key), launch)
    return list(found.values())


def current_target() -> Target:
    """The GPU at hand."""
    target = driver.active.get_current_target()
    return target.backend, target.arch, target.warp_size


def compile_launch(launch: Launch) -> Any:
    """Compile for the driver's target, without a look at the numbers of its tensors."""
    return launch.kernel.warmup(grid=(1,), **launch.arguments, **launch.constants, **launch.options())


def compile_in_processes(launches: Sequence[Launch], target: Target, jobs: int) -> Iterator[dict[str, Any]]:
    """One result for each launch, as it comes: its ``index``, seconds, and ``error``, None where there was none."""
    jobs = max(1, min(jobs, len(launches)))
    folders = os.pathsep.join([str(PACKAGE_PARENT), *filter(None, sys.path)])  # kernels may be in other packages
    command = [sys.executable, "-m", __name__]
    with contextlib.ExitStack() as stack:
        processes = []
        for first in range(jobs):
            # from a file: a pipe that nobody reads yet would hold up the writer
            lines = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            lines.write(json.dumps(target) + "\n")
            for index in range(first, len(launches), jobs):
                lines.write(json.dumps({"index": index, **_as_plain(launches[index])}) + "\n")
            lines.seek(0)
            environment = os.environ | {"PYTHONPATH": folders}
            process = subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, text=True, env=environment)
            stack.callback(_end, process)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                raise RuntimeError(f"a process that compiles kernels ended with {process.returncode}; see its messages")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _as_plain(launch: Launch) -> dict[str, Any]:
    arguments = {
        name: {"dtype": str(value.dtype).removeprefix("torch.")} if isinstance(value, Tensor) else value
        for name, value in launch.arguments.items()
    }
    kernel = {"module": launch.kernel.__module__, "kernel": launch.kernel.__name__, "programs": launch.programs}
    return (
        kernel
        | {"arguments": arguments, "constants": launch.constants, "warps": launch.warps}
        | {"stages": launch.stages}
    )


def _from_plain(plain: dict[str, Any]) -> Launch:
    kernel = getattr(importlib.import_module(plain["module"]), plain["kernel"])
    arguments = {
        name: torch.empty(0, dtype=getattr(torch, value["dtype"]), device="meta") if isinstance(value, dict) else value
        for name, value in plain["arguments"].items()
    }
    return Launch(kernel, plain["programs"], arguments, plain["constants"], plain["warps"], plain["stages"])


class DriverWithoutGpu:
    """What Triton asks of its driver before it starts a kernel."""

    def __init__(self, target: Target) -> None:
        self.target = GPUTarget(*target)

    def get_current_target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one, on which nothing is started."""
        return 0


def main() -> int:
    """Compile what comes in; one line of JSON for each launch."""
    target, *lines = (json.loads(line) for line in sys.stdin)
    driver.set_active(DriverWithoutGpu(tuple(target)))
    for plain in lines:
        start, error = time.perf_counter(), None
        try:
            compile_launch(_from_plain(plain))
        except Exception as problem:  # the others are compiled all the same
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
        result = {"index": plain["index"], "seconds": round(time.perf_counter() - start, 3), "error": error}
        print(json.dumps(result | {"triton": triton.__version__}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
