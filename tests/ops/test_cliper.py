"""The operator behind CLIPer's refiner against its definition on every backend: sizes, dtypes, thresholds, threads."""

from __future__ import annotations

import math

import pytest
import torch
from tests.ops.problems import queries_and_keys
from torch import Tensor

from nerve_kernels import _native, reference, refiners
from nerve_kernels._operators.attention import score_blocks

BACKENDS = [
    pytest.param("cpp", marks=pytest.mark.skipif(not _native.extension_loaded(), reason="no extension")),
    "eager",
]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
# batch, heads, tokens, head size, labels: a token; less than a tile; lists that fit; enough rows to be sampled
SIZES = [(1, 1, 1, 3, 1), (2, 3, 13, 5, 4), (1, 2, 135, 40, 33), (2, 2, 301, 8, 70)]


def problem(
    batch: int, heads: int, tokens: int, size: int, labels: int, dtype: torch.dtype, sharpness: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    q, k = queries_and_keys(tokens, batch, heads, tokens, tokens, size, dtype)
    seeds = torch.rand(batch, tokens, labels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sharpness * q, k, seeds.to(dtype)


def near_threshold(q: Tensor, k: Tensor, threshold: float) -> Tensor:
    """(B, N): the rows that have, in any head, an entry so near the threshold that rounding decides about it."""
    maps = reference.attention(q, k)
    ratio = maps / (maps.amax(-2, keepdim=True) + 1e-5)
    return ((ratio - threshold).abs() < 1e-5).any(-1).any(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_equals_the_definition(size, threshold, backend):
    q, k, seeds = problem(*size, torch.float64)
    refined = refiners.cliper(q, k, seeds, threshold=threshold, backend=backend)
    expected = reference.cliper(q, k, seeds, threshold=threshold)
    assert refined.dtype == torch.float64
    assert (refined - expected).abs().max() < TOLERANCE[torch.float64]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_float32_is_exact_where_no_entry_is_within_rounding_of_the_threshold(dtype, backend):
    q, k, seeds = problem(1, 1, 301, 8, 7, dtype)
    refined = refiners.cliper(q, k, seeds.float(), backend=backend)
    near = near_threshold(q, k, 0.1)
    assert near.float().mean() < 0.2
    assert (refined - reference.cliper(q, k, seeds.float()))[~near].abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds_keep_their_dtype_and_queries_may_lie_anyhow(backend):
    q, k, seeds = problem(2, 3, 40, 8, 5, torch.float32)
    contiguous = refiners.cliper(q, k, seeds, backend=backend)
    scattered = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, seeds)]
    torch.testing.assert_close(refiners.cliper(*scattered, backend=backend), contiguous, rtol=0, atol=1e-6)
    half = refiners.cliper(q, k, seeds.half(), backend=backend)
    assert half.dtype == torch.float16
    assert (half - contiguous).abs().max() < 2e-3


def test_blocks_of_rows_do_not_show(monkeypatch):
    q, k, seeds = problem(1, 2, 50, 8, 5, torch.float64)
    whole = refiners.cliper(q, k, seeds, backend="eager")
    monkeypatch.setattr(score_blocks, "CPU_BLOCK_ELEMENTS", 150)  # three rows at a time
    torch.testing.assert_close(refiners.cliper(q, k, seeds, backend="eager"), whole, rtol=0, atol=1e-14)


@pytest.mark.skipif(not _native.extension_loaded(), reason="no extension")
def test_rows_whose_list_is_full_are_computed_anew_to_the_same_bits():
    """Flat attention keeps every entry: 1,100 of them, where the lists have room for 1,024 a row."""
    q, k, seeds = problem(1, 2, 1100, 4, 3, torch.float32, sharpness=0.1)
    refined = refiners.cliper(q, k, seeds, backend="cpp")
    assert (refined - reference.cliper(q, k, seeds)).abs().max() < TOLERANCE[torch.float32]
    first, others = q.clone(), q.clone()
    first[:, :, 550:] *= 100  # sharp rows: only the lists of the first half are full; then of the second
    others[:, :, :550] *= 100
    for mixed in (first, others):
        refined = refiners.cliper(mixed, k, seeds, backend="cpp")
        near = near_threshold(mixed, k, 0.1)
        assert near.float().mean() < 0.9
        # one head only, so that a row near the threshold is no neighbour of the others
        one = refiners.cliper(mixed[:, :1], k[:, :1], seeds, backend="cpp")
        near = near_threshold(mixed[:, :1], k[:, :1], 0.1)
        assert (one - reference.cliper(mixed[:, :1], k[:, :1], seeds))[~near].abs().max() < TOLERANCE[torch.float32]


@pytest.mark.skipif(not _native.extension_loaded(), reason="no extension")
def test_bitwise_the_same_for_any_number_of_threads():
    q, k, seeds = problem(2, 3, 301, 20, 9, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = refiners.cliper(q, k, seeds, backend="cpp")
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(refiners.cliper(q, k, seeds, backend="cpp"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_is_not_hidden(backend):
    q, k, seeds = problem(1, 1, 150, 8, 2, torch.float32)
    q[0, 0, 3, 0] = math.nan
    assert refiners.cliper(q, k, seeds, backend=backend).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_in_nothing_out(backend):
    q = torch.zeros(0, 2, 6, 4)
    assert refiners.cliper(q, q, torch.zeros(0, 6, 3), backend=backend).shape == (0, 6, 3)
    without_heads = torch.zeros(1, 0, 6, 4)
    seeds = torch.rand(1, 6, 3)
    assert torch.equal(refiners.cliper(without_heads, without_heads, seeds, backend=backend), seeds)
