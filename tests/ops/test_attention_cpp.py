"""The compiled attention kernels against the reference: dtypes, head sizes, sizes that fill no block, and edges."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference

# Where there is a C++ compiler, tests/packaging asserts that the extension was built: this skip cannot hide a failure.
pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")

WIDE = (torch.float32, torch.float64)
LOW = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
HEAD_SIZES = [1, 7, 40, 64, 80, 128, 160]
# batch, heads, queries, keys: one token, less than a tile, whole tiles, several strips of keys and blocks of rows
SIZES = [(1, 1, 1, 1), (2, 3, 5, 33), (1, 2, 96, 256), (1, 2, 109, 601), (1, 1, 3, 1)]
GRIDS = [  # grid, window, cells
    ((7, 11), (3, 5), (3, 4)),
    ((1, 1), (1, 1), (1, 1)),
    ((1, 9), (1, 17), (1, 9)),
    ((6, 5), (11, 9), (6, 5)),
    ((19, 17), (7, 7), (4, 4)),
    ((16, 16), (5, 3), (4, 8)),
]


@pytest.fixture
def restored_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", WIDE + LOW, ids=str)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_stage_one_equals_the_reference(head_size: int, dtype: torch.dtype) -> None:
    for batch, heads, queries, keys in SIZES:
        q, k = queries_and_keys(0, batch, heads, queries, keys, head_size, dtype)
        entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend="cpp")
        expected_entropy, expected_lse = reference.attention_entropy(q, k, return_lse=True)
        assert entropy.dtype == lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # entropies are compared with their scale, log N_k: rows near one-hot have their own test
        assert (entropy - expected_entropy).abs().max() <= TOLERANCE[dtype]
        assert relative_error(lse, expected_lse) <= TOLERANCE[dtype]
        marginal = nk.attention_marginal(q, k, lse=lse, backend="cpp")
        assert relative_error(marginal, reference.attention_marginal(q, k)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", WIDE + LOW, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_fused_map_equals_the_reference(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for head_size in (5, 40):
        q, k = queries_and_keys(1, *size, head_size, dtype)
        w = random_weights(2, *size[:2])
        fused = nk.fuse_attention(q, k, w, backend="cpp")
        assert fused.dtype == dtype
        expected = reference.fuse_attention(q, k, w)
        plain = torch.einsum("bh,bhij->bij", w.to(dtype), (q @ k.mT * head_size**-0.5).softmax(-1))
        assert relative_error(fused, expected) <= 2 * relative_error(plain, expected) + 1e-7


@pytest.mark.parametrize("dtype", WIDE + LOW, ids=str)
@pytest.mark.parametrize(("grid", "window", "cells"), GRIDS, ids=str)
def test_both_affinities_equal_the_reference(
    grid: tuple[int, int], window: tuple[int, int], cells: tuple[int, int], dtype: torch.dtype
) -> None:
    for head_size in (3, 40):
        tokens = grid[0] * grid[1]
        q, k = queries_and_keys(3, 2, 3, tokens, tokens, head_size, dtype)
        w = random_weights(4, 2, 3)
        local = nk.local_affinity(q, k, w, grid=grid, window=window, backend="cpp")
        expected = reference.local_affinity(q, k, w, grid=grid, window=window)
        assert relative_error(local.to_dense(), expected) <= TOLERANCE[dtype]
        low_rank = nk.global_affinity(q, k, w, grid=grid, cells=cells, backend="cpp")
        expected = reference.global_affinity(q, k, w, grid=grid, cells=cells)
        assert relative_error(low_rank.to_dense(), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", WIDE + LOW, ids=str)
@pytest.mark.parametrize(
    ("heads", "rows", "keys"), [(3, 9, 1), (3, 9, 13), (4, 16, 64), (9, 12, 1500), (5, 2, 2048), (4, 2, 4097)]
)
def test_explicit_maps_equal_the_reference(heads: int, rows: int, keys: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(keys)
    maps = (4 * torch.randn(2, heads, rows, keys, generator=generator)).softmax(-1).to(dtype)
    w = random_weights(5, 2, heads)
    entropy = nk.attention_map_entropy(maps, backend="cpp")
    assert (entropy - reference.attention_map_entropy(maps)).abs().max() <= TOLERANCE[dtype]
    fused, expected = nk.fuse_attention_maps(maps, w, backend="cpp"), reference.fuse_attention_maps(maps, w)
    plain = torch.einsum("bh,bhij->bij", w.to(dtype), maps)
    assert fused.dtype == dtype
    assert relative_error(fused, expected) <= 2 * relative_error(plain, expected) + 1e-7


def test_the_entropy_of_a_map_has_the_values_of_torch_entr_at_its_edges() -> None:
    for dtype, tiny in ((torch.float32, 1e-44), (torch.float64, 1e-320)):
        for value in (0.0, 1.0, 0.25, tiny, 3.0, -0.5, math.inf, math.nan):
            maps = torch.zeros(1, 1, 1, 21, dtype=dtype)
            maps[..., 20] = value
            expected = torch.special.entr(maps).sum(-1)
            torch.testing.assert_close(nk.attention_map_entropy(maps, backend="cpp"), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_the_exponential_is_within_two_units_in_the_last_place(dtype: torch.dtype) -> None:
    # one key of 1, weight 1 and lse 0 make the fused map the exponential of q
    low, high = (-104.0, 88.7) if dtype == torch.float32 else (-745.0, 709.5)
    x = torch.linspace(low, high, 50_001, dtype=torch.float64).to(dtype)
    q, one = x.reshape(1, 1, -1, 1), torch.ones(1, 1, dtype=dtype)
    result = nk.fuse_attention(q, one.reshape(1, 1, 1, 1), one, scale=1.0, lse=torch.zeros_like(q[..., 0])).flatten()
    expected = x.double().exp()
    spacing = torch.nextafter(expected.to(dtype), torch.tensor(math.inf, dtype=dtype)).double() - expected.to(dtype)
    assert ((result.double() - expected).abs() / spacing).max() <= 2
    ends = torch.tensor([0.0, -math.inf, math.inf, 1e30, -1e30, math.nan], dtype=dtype)
    q = ends.reshape(1, 1, -1, 1)
    result = nk.fuse_attention(q, one.reshape(1, 1, 1, 1), one, scale=1.0, lse=torch.zeros_like(q[..., 0])).flatten()
    torch.testing.assert_close(result, ends.exp(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sharpness", [1, 10, 50])
def test_float32_is_as_good_as_an_exact_softmax_on_float32_scores(sharpness: int) -> None:
    q, k = queries_and_keys(6, 1, 2, 200, 700, 40)
    scale = sharpness * 40**-0.5
    scores = (q * scale) @ k.mT
    exact = torch.special.entr(scores.double().softmax(-1)).sum(-1).float()
    expected = reference.attention_entropy(q, k, scale=scale)
    entropy = nk.attention_entropy(q, k, scale=scale, backend="cpp")
    assert relative_error(entropy, expected) <= 2 * relative_error(exact, expected)


@pytest.mark.parametrize("dtype", WIDE + LOW, ids=str)
def test_masked_keys_add_nothing_wherever_they_lie(dtype: torch.dtype) -> None:
    for masked in (slice(0, 1), slice(0, 700), slice(300, 600), slice(1, None)):
        kept = torch.ones(901, dtype=torch.bool)
        kept[masked] = False
        q, k = torch.ones(1, 1, 2, 1, dtype=dtype), torch.zeros(1, 1, 901, 1, dtype=dtype)
        k[0, 0, ~kept] = -math.inf
        k[0, 0, kept] = torch.linspace(-1, 1, int(kept.sum())).to(dtype)[:, None]
        entropy, lse = nk.attention_entropy(q, k, scale=1.0, return_lse=True, backend="cpp")
        expected_entropy, expected_lse = reference.attention_entropy(q, k[:, :, kept], scale=1.0, return_lse=True)
        assert (entropy - expected_entropy).abs().max() < 3e-6
        assert (lse - expected_lse).abs().max() < 3e-6
        assert nk.fuse_attention(q, k, torch.ones(1, 1), scale=1.0, lse=lse)[0, :, ~kept].abs().max() == 0


def test_rows_without_a_distribution_are_not_a_number() -> None:
    q = torch.tensor([[[[1.0], [math.nan], [-1.0], [0.5]]]])
    k = torch.full((1, 1, 300, 1), -math.inf)
    entropy, lse = nk.attention_entropy(q[:, :, :1], k, scale=1.0, return_lse=True, backend="cpp")
    assert entropy.isnan().all()
    assert lse.isnan().all()
    entropy, lse = nk.attention_entropy(q, torch.ones(1, 1, 300, 1), scale=1.0, return_lse=True, backend="cpp")
    assert entropy.isnan().tolist() == lse.isnan().tolist() == [[[False, True, False, False]]]


def test_scores_of_ten_thousand_and_single_keys_are_exact() -> None:
    q, k = torch.tensor([[[[1e4], [-1e4]]]]), torch.tensor([[[[1.0], [-1.0], [0.0]]]])
    entropy, lse = nk.attention_entropy(q, k, scale=1.0, return_lse=True, backend="cpp")
    assert entropy.flatten().tolist() == [0.0, 0.0]
    assert lse.flatten().tolist() == [1e4, 1e4]
    q, k = queries_and_keys(7, 1, 2, 30, 1, 8)
    entropy, lse = nk.attention_entropy(q, k, scale=1.0, return_lse=True, backend="cpp")
    assert entropy.abs().max() == 0
    torch.testing.assert_close(lse, (q * k).sum(-1))


def test_nothing_in_nothing_out() -> None:
    for batch, heads, tokens in ((0, 2, 6), (2, 0, 6)):
        q, w = torch.zeros(batch, heads, tokens, 8), torch.zeros(batch, heads)
        lse = torch.zeros(batch, heads, tokens)
        ops = torch.ops.nerve_kernels
        assert ops._attention_entropy_cpp(q, q, 1.0)[0].shape == (batch, heads, tokens)
        assert ops._attention_marginal_cpp(q, q, lse, 1.0).shape == (batch, heads, tokens)
        assert ops._attention_map_entropy_cpp(q).shape == (batch, heads, tokens)
        assert ops._fuse_attention_cpp(q, q, w, lse, 1.0).shape == (batch, tokens, tokens)
        assert ops._fuse_attention_maps_cpp(q, w, False).shape == (batch, tokens, 8)
        neither = torch.empty(batch, heads, 1, 0).expand(
            batch, heads, 0, 0
        )  # rows that lie behind each other, of nothing
        assert ops._fuse_attention_maps_cpp(neither, w, True).shape == (batch, 0, 0)
        assert ops._global_affinity_cpp(q, q, w, lse, [2, 3], [1, 2], 1.0).shape == (batch, tokens, 2)
        assert ops._local_affinity_cpp(q, q, w, lse, [2, 3], [3, 3], 1.0, False).shape == (batch, tokens, 9)
    without_heads = ops._local_affinity_cpp(q, q, w, lse, [2, 3], [3, 3], 1.0, True)
    assert torch.equal(without_heads[0, 0], torch.eye(9)[4]), "no head, no mass: the identity"


def test_a_window_emptied_by_a_far_sink_becomes_the_identity() -> None:
    keys = torch.zeros(1, 1, 40, 1)
    keys[0, 0, 0, 0] = 200.0
    w, queries = torch.ones(1, 1), torch.ones(1, 1, 40, 1)
    local = nk.local_affinity(queries, keys, w, grid=(1, 40), window=(1, 3), scale=1.0, backend="cpp")
    assert local.values[0, 20].tolist() == [0.0, 1.0, 0.0]
    assert (local.values.sum(-1) - 1).abs().max() < 1e-6


def every_result(q: Tensor, k: Tensor, w: Tensor, maps: Tensor) -> list[Tensor]:
    """What each compiled kernel makes of the inputs, which lie on a 9 × 15 grid."""
    ops = torch.ops.nerve_kernels
    entropy, lse = ops._attention_entropy_cpp(q, k, 0.2)
    return [
        entropy,
        lse,
        ops._attention_marginal_cpp(q, k, lse, 0.2),
        ops._fuse_attention_cpp(q, k, w, lse, 0.2),
        ops._attention_map_entropy_cpp(maps),
        ops._fuse_attention_maps_cpp(maps, w, False),
        ops._local_affinity_cpp(q, k, w, lse, [9, 15], [5, 7], 0.2, True),
        ops._local_affinity_cpp(q, k, w, lse, [9, 15], [5, 7], 0.2, False),
        ops._global_affinity_cpp(q, k, w, lse, [9, 15], [4, 4], 0.2),
    ]


def inputs_on_a_grid(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k = queries_and_keys(8, 2, 3, 135, 135, 20, dtype)
    return q, k, random_weights(9, 2, 3), (q @ k.mT).softmax(-1)


@pytest.mark.usefixtures("restored_thread_count")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitwise_the_same_for_any_number_of_threads(dtype: torch.dtype) -> None:
    inputs = inputs_on_a_grid(dtype)
    torch.set_num_threads(1)
    expected = every_result(*inputs)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for result, wanted in zip(every_result(*inputs), expected, strict=True):
            assert torch.equal(result, wanted)


def test_strides_do_not_matter() -> None:
    inputs = inputs_on_a_grid()
    expected = every_result(*inputs)
    backwards = [item.permute(*reversed(range(item.dim()))).contiguous() for item in inputs]
    strided = [item.permute(*reversed(range(item.dim()))) for item in backwards]
    assert not any(item.is_contiguous() for item in strided)
    for result, wanted in zip(every_result(*strided), expected, strict=True):
        assert torch.equal(result, wanted)


def test_offsets_beyond_32_bits() -> None:
    # heads lie 2^31 numbers apart; the pages between them are never touched
    q, k = queries_and_keys(10, 1, 2, 35, 35, 8, torch.bfloat16)
    apart = 2**31 + 64
    try:
        storage = torch.empty(apart + 35 * 8, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("this machine does not lend so many addresses")
    far = storage.as_strided(q.shape, (0, apart, 8, 1)).copy_(k)
    assert torch.equal(nk.attention_entropy(q, far, backend="cpp"), nk.attention_entropy(q, k, backend="cpp"))
    w = random_weights(11, 1, 2)
    near = nk.local_affinity(q, k, w, grid=(5, 7), window=3, backend="cpp").values
    assert torch.equal(nk.local_affinity(q, far, w, grid=(5, 7), window=3, backend="cpp").values, near)


def test_a_float64_lse_lifts_float32_inputs() -> None:
    q, k, w, _ = inputs_on_a_grid()
    lse = reference.attention_entropy(q, k, return_lse=True)[1]
    marginal = nk.attention_marginal(q, k, lse=lse, backend="cpp")
    assert marginal.dtype == torch.float64
    assert relative_error(marginal, reference.attention_marginal(q, k)) < 1e-7  # the scores' own scale is exact
    low_rank = nk.global_affinity(q, k, w, grid=(9, 15), cells=(4, 4), lse=lse, backend="cpp")
    assert relative_error(low_rank.u.sum(-1), torch.ones(2, 135)) < 1e-7
