"""csrc/cuda/ compiled by nvcc for every GPU generation: what ptxas says of each kernel, and no spill among it."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from verification.checks import ROOT

INCLUDE = Path(torch.__file__).parent / "include"
ARCHITECTURES = ("80", "90", "100", "120")
FLAGS = ["-O3", "-std=c++20", "-Xcompiler", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]


def compile_file(
    source: Path, architectures: list[str], target: Path, include: Path = INCLUDE
) -> subprocess.CompletedProcess[str]:
    """One object file for all architectures, the last as PTX too, with ptxas telling registers and spills."""
    codes = [f"arch=compute_{number},code=sm_{number}" for number in architectures]
    codes.append(f"arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    command = [str(shutil.which("nvcc")), "-c", "-Xptxas", "-v", *FLAGS]
    command += [part for code in codes for part in ("-gencode", code)]
    command += ["-isystem", str(include), str(source), "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def spills(messages: str) -> list[str]:
    """ptxas's lines with a spill in them."""
    numbers = re.compile(r"(\d+) bytes spill (?:stores|loads)")
    return [line.strip() for line in messages.splitlines() if any(int(n) for n in numbers.findall(line))]


def main() -> int:
    """1 where a file does not compile or a kernel spills."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    architectures = parser.parse_args().architectures
    sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
    if shutil.which("nvcc") is None or not sources:
        print("error: nvcc is not on the PATH" if sources else "error: there are no .cu files in csrc/cuda")
        return 1
    failed = []
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            finished = compile_file(source, architectures, Path(folder) / "kernels.o")
        messages = finished.stdout + finished.stderr
        registers = [int(number) for number in re.findall(r"Used (\d+) registers", messages)]
        found = spills(messages)
        if finished.returncode or found:
            failed.append(source)
            print(messages if finished.returncode else "\n".join(found))
        print(
            f"{source.relative_to(ROOT)}: {len(registers)} kernels for sm_{', sm_'.join(architectures)}, "
            f"at most {max(registers, default=0)} registers, {len(found)} with spills"
        )
    print(f"{len(sources)} files compiled, {len(failed)} failed or spilled")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
