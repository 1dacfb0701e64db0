"""The entropy of float32 heads as compiled for sm_80: products in three TF32 terms, on tensor cores that cut sums."""

from __future__ import annotations

import math
import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import walk_ptx

from nerve_kernels import reference
from nerve_kernels._triton.attention import attention_entropy


def test_three_terms_are_as_exact_as_float32():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 130, 40, generator=generator), torch.randn(1, 1, 70, 40, generator=generator)
    entropy, lse = torch.full((2, 1, 1, 130), math.nan).unbind()
    launch = attention_entropy.plan(q, k, 40**-0.5, entropy, lse)
    assert launch.constants["PRECISION"] == "tf32x3"
    report, _ = walk_ptx.interpret(launch, walk_ptx.compile_ptx(launch))
    assert report.faults == []
    expected, expected_lse = reference.attention_entropy(q, k, return_lse=True)
    in_float32 = ((q @ k.transpose(-1, -2)) * 40**-0.5).logsumexp(-1)
    assert (lse - expected_lse).abs().max() <= 2 * (in_float32 - expected_lse).abs().max()
    assert (entropy - expected).abs().max() < 2e-6
