"""Scores of float32 heads as compiled for sm_80: products in three TF32 terms, on tensor cores that cut sums."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import walk_ptx

from nerve_kernels import reference
from nerve_kernels._triton.attention import attention_entropy, attention_marginal, fuse_attention
from nerve_kernels._triton.launch import Launch


def heads(queries: int, keys: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 1, queries, size, generator=generator), torch.randn(1, 1, keys, size, generator=generator)


def check_compiled(launch: Launch) -> None:
    assert launch.constants["PRECISION"] == "tf32x3"
    report, _ = walk_ptx.interpret(launch, walk_ptx.compile_ptx(launch))
    assert report.faults == []


def test_entropy_is_as_exact_as_float32():
    q, k = heads(130, 70, 40)
    entropy, lse = torch.full((2, 1, 1, 130), math.nan).unbind()
    check_compiled(attention_entropy.plan(q, k, 40**-0.5, entropy, lse))
    expected, expected_lse = reference.attention_entropy(q, k, return_lse=True)
    in_float32 = ((q @ k.transpose(-1, -2)) * 40**-0.5).logsumexp(-1)
    assert (lse - expected_lse).abs().max() <= 2 * (in_float32 - expected_lse).abs().max()
    assert (entropy - expected).abs().max() < 2e-6


@pytest.mark.parametrize("size", [40, 80])
def test_sums_and_means_of_maps_are_as_exact_as_float32(size):
    q, k = heads(70, 70, size)
    w, scale = torch.ones(1, 1), size**-0.5
    lse = (q.double() @ k.double().transpose(-1, -2) * scale).logsumexp(-1).float()
    fused, marginal = torch.full((1, 70, 70), math.nan), torch.full((1, 1, 70), math.nan)
    check_compiled(fuse_attention.plan(q, k, w, lse, scale, fused))
    check_compiled(attention_marginal.plan(q, k, lse, scale, marginal))
    expected = reference.fuse_attention(q, k, w)
    in_float32 = (q @ k.transpose(-1, -2) * scale - lse[..., None]).exp()[:, 0]

    def error(found: Tensor) -> Tensor:
        return ((found - expected) / expected).abs().max()

    assert error(fused) <= 2 * error(in_float32)
    assert (marginal[:, 0] / expected.mean(1) - 1).abs().max() < 2e-6
