"""Every Triton kernel on the semantics of its compiled IR: ``python -m ttsem.sanitize verification.ttir.py``.

ttsem runs what Triton's own compiler made of a kernel, before it becomes machine code, on CPU tensors: reads and writes
outside a tensor, races between programs and undefined results stop it, and unlike Triton's interpreter it multiplies
bfloat16 as a GPU does. Results are compared with the float64 definition.
"""

from __future__ import annotations

import sys

import torch
from benchmarks.measure import TOLERANCES, relative_error
from benchmarks.operations import sizes
from benchmarks.operations.catalog import OPERATIONS
from benchmarks.operations.problems import Problem

import nerve_kernels as nk
from nerve_kernels._triton import availability


def main() -> int:
    """1 where a kernel is wrong, or none ran."""
    # the kernels are compiled as for a GPU, and ttsem executes them wherever their tensors are
    availability._why_not_on_device = lambda tensors: None
    ran, wrong = 0, 0
    for operation in OPERATIONS:
        if "triton" not in operation.backends:
            continue
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            problem = Problem(sizes.SMALL, dtype=dtype)
            try:
                result = operation.ours(problem, "triton")()
            except nk.BackendUnavailableError as error:
                print(f"not run: {operation.name}: {error}")
                break
            error = relative_error(result, operation.reference(problem))
            within = error <= max(operation.tolerance, TOLERANCES[dtype])
            ran, wrong = ran + 1, wrong + (not within)
            print(
                f"{'ok' if within else 'WRONG':<6} {operation.name} | {dtype} | relative error {error:.2g}", flush=True
            )
    print(f"{ran} runs on the compiled IR, {wrong} wrong")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
