"""Every operation once, at a small size, by every backend that the GPU has: what compute-sanitizer runs."""

from __future__ import annotations

import argparse
import sys

import torch
from benchmarks.operations import sizes
from benchmarks.operations.catalog import OPERATIONS
from benchmarks.operations.problems import Problem

import nerve_kernels as nk


def main() -> int:
    """1 where not a single operation ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    options = parser.parse_args()
    ran = 0
    for operation in OPERATIONS:
        for backend in options.backends:
            if backend not in operation.backends:
                continue
            for dtype in (torch.float32, torch.float16):
                try:
                    operation.ours(Problem(sizes.SMALL, dtype=dtype, device=options.device), backend)()
                except nk.BackendUnavailableError as error:
                    print(f"not run: {operation.name}, {backend}: {error}")
                    break
                ran += 1
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} runs of {len(OPERATIONS)} operations")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
