"""U T of the walk's step as compiled for sm_80, over 4096 ranks, on tensor cores that cut their sums towards zero."""

from __future__ import annotations

import math
import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import walk_ptx

from nerve_kernels._triton.walk.walk_step import Step, tiling

GRID, RANKS, LABELS = [4, 8], 4096, 16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_bias_after_4096_ranks_of_one_sign(dtype):
    """What is cut off in one long sum adds up, to 1e-5 here; a float32 sum of blocks rounds."""
    generator = torch.Generator().manual_seed(0)
    tokens = math.prod(GRID)
    u = torch.rand(1, tokens, RANKS, generator=generator).to(getattr(torch, dtype))
    pooled = torch.rand(1, RANKS, LABELS, generator=generator)
    p, out = torch.zeros(1, tokens, LABELS), torch.full((1, tokens, LABELS), math.nan)
    step = Step(GRID, [1, 1], [1, 1], tiling(GRID, None, LABELS), (0.0, 1.0, 0.0), u=u)
    launch = step.plan(p, pooled, None, out)
    report, _ = walk_ptx.interpret(launch, walk_ptx.compile_ptx(launch))
    assert report.faults == []
    exact = u.double() @ pooled.double()
    assert abs(((out - exact) / exact).mean()) < 4e-7
