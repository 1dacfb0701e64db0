"""Products of float32 in three TF32 terms, as the packed walk takes them, with tensor cores that cut their sums.

Emulated number by number: TF32 operands of 11 bits, eight products a step added exactly and cut to float32 towards
zero. That is what an H100 does at worst; the same emulation interprets the compiled kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
from verification.ptx.tensor_cores import towards_zero

BLOCK, AT_ONCE = 32, 8  # ranks of a block, and of one instruction


def rounded(x: np.ndarray, dropped: int) -> np.ndarray:
    """To fewer bits, the nearest, ties away from zero."""
    bits = x.astype(np.float32).view(np.int32)
    return ((bits + (1 << (dropped - 1))) & -(1 << dropped)).view(np.float32)


def cut(x: np.ndarray) -> np.ndarray:
    """What a tensor core reads of a float32."""
    return (x.view(np.int32) & -8192).view(np.float32)


def on_tensor_cores(total: np.ndarray, weights: np.ndarray, p: np.ndarray) -> np.ndarray:
    """``total`` + Σ weights · p along the first axis."""
    for at in range(0, len(p), AT_ONCE):
        products = cut(weights[at : at + AT_ONCE]).astype(np.float64) * cut(p[at : at + AT_ONCE])
        total = towards_zero(total + products.sum(0))
    return total


def three_terms(weights: np.ndarray, p: np.ndarray, block: int) -> np.ndarray:
    """As ``block_product`` has it, each block's sum added to the total in float32."""
    weights = rounded(weights, 2)  # by the packing
    high = rounded(p, 13)
    low = rounded(p - high, 13)
    weights_high = cut(weights)
    total = np.zeros(p.shape[1], np.float32)
    for at in range(0, len(p), block):
        part = np.zeros_like(total)
        here = slice(at, at + block)
        for left, right in ((weights - weights_high, high), (weights_high, low), (weights_high, high)):
            part = on_tensor_cores(part, left[here], right[here])
        total = total + part
    return total


def fused_multiply_add(weights: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The same sum in float32, one fused multiply-add after the other."""
    total = np.zeros(p.shape[1], np.float32)
    for left, right in zip(weights.astype(np.float64), p, strict=True):
        total = (total + left * right).astype(np.float32)
    return total


def operands(length: int, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights and P for 128 sums, and the sums in float64."""
    generator = np.random.default_rng(0)
    weights, p = (generator.random((length, 128), np.float32) for _ in range(2))
    if signed:
        weights, p = weights - np.float32(0.5), p - np.float32(0.5)
    return weights, p, (weights.astype(np.float64) * p).sum(0)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("length", [32, 224, 1024, 4096])
def test_three_terms_are_as_exact_as_float32(length, signed):
    weights, p, exact = operands(length, signed)
    ours, theirs = error(three_terms(weights, p, BLOCK), exact), error(fused_multiply_add(weights, p), exact)
    print(f"{length} terms, {'signed' if signed else 'of one sign'}: {ours:.2e}, FFMA {theirs:.2e}")
    assert ours <= 2 * theirs
    two = error(three_terms(cut(weights), p, BLOCK), exact)  # without the low term of the weights
    assert two > 20 * ours


def test_no_bias_after_4096_terms_of_one_sign():
    """In one long sum, what is cut off adds up; in blocks of 32 it does not."""
    weights, p, exact = operands(4096, signed=False)
    blocks, whole = (((three_terms(weights, p, block) - exact) / exact).mean() for block in (BLOCK, 4096))
    print(f"bias in blocks of {BLOCK}: {blocks:.1e}, in one sum: {whole:.1e}")
    assert abs(blocks) < 2e-7
    assert whole < -5e-6
