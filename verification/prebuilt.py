"""Whether the ``_C_cuda`` that lies beside the sources can be used here: ``make gpu-check PREBUILT=1`` asks first.

It is built elsewhere, with ``TORCH_CUDA_ARCH_LIST=9.0a FORCE_CUDA=1 python setup.py build_ext --inplace``, and carried.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from verification.checks import ROOT

FOLDER = ROOT / "src" / "nerve_kernels"


def architectures(library: Path) -> set[str]:
    """The GPUs that a library holds machine code for, like ``sm_90a``."""
    tools = [shutil.which("cuobjdump") or ""]
    found = importlib.util.find_spec("triton")
    if found is not None and found.origin is not None:  # it brings one
        tools.append(str(Path(found.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    tool = next((tool for tool in tools if Path(tool).is_file()), "cuobjdump")
    listed = subprocess.run([tool, "--list-elf", str(library)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"\bsm_\d+[af]?\b", listed))


def why_unsupported(library: Path, capability: tuple[int, int]) -> str | None:
    """Why a GPU of this capability, or this torch, cannot use the library; None where they can."""
    major, minor = capability
    # code runs on the same generation with an equal or later minor number, with "a" on exactly its own
    usable = {f"sm_{major}{minor}a", *(f"sm_{major}{older}" for older in range(minor + 1))}
    there = architectures(library)
    if not there & usable:
        return f"expected code for sm_{major}{minor}, got {', '.join(sorted(there)) or 'none'}"
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_NOW)  # every symbol of torch and CUDA that it needs, now
    except OSError as error:
        return f"torch {torch.__version__} cannot load it: {error}"
    return None


def main() -> int:
    """1 where it is missing or of no use here."""
    library = next(iter(sorted(FOLDER.glob("_C_cuda*.so"))), None)
    if library is None:
        print(f"error: prebuilt: expected {FOLDER}/_C_cuda*.so, got none; copy it there or leave PREBUILT out")
        return 1
    reason = why_unsupported(library, torch.cuda.get_device_capability())
    if reason is not None:
        print(f"error: {library.name}: {reason}; build it for this GPU and torch or leave PREBUILT out")
        return 1
    print(f"{library.name}, {', '.join(sorted(architectures(library)))}, loads in torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
