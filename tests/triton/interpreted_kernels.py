"""Every Triton kernel in Triton's interpreter, on the CPU: run by test_interpreted.py, which sets TRITON_INTERPRET=1.

Sizes give at least two
programs along each axis and leave remainders.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from tests.triton.interpreted_problems import PROBLEMS, TOLERANCE, growing_keys, random_weights, relative_error

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels._operators import dispatch
from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.pixels import best_labels

ON_HEADS = ["attention_entropy", "attention_marginal", "fuse_attention", "local_affinity", "global_affinity"]
DTYPES = [torch.float32, torch.float16]


def run_of(operation):
    return importlib.import_module(f"nerve_kernels._triton.attention.{operation}").run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [3, 40, 64, 80, 128, 160])
@pytest.mark.parametrize("operation", ON_HEADS)
def test_head_sizes(operation, head_size, dtype):
    PROBLEMS[operation](run_of(operation), head_size, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", ["attention_map_entropy", "fuse_attention_maps", "fuse_attention_maps_gradient"])
def test_explicit_maps(operation, dtype):
    PROBLEMS[operation](run_of(operation), 0, dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "size"),
    [((5, 4), (7, 600)), ((1, 1), (3, 40)), ((1, 6), (4, 33)), ((12, 9), (5, 7)), ((9, 9), (9, 9))],
    ids=str,
)
def test_labels_of_pixels(tokens, size, dtype):
    """Enlarged, single tokens, shrunk, as they are."""
    PROBLEMS["best_labels"](best_labels.run, 0, dtype, tokens=tokens, size=size)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 70), (65, 1), (3, 128)])
@pytest.mark.parametrize("operation", ON_HEADS[:3])
def test_odd_numbers_of_tokens(operation, queries, keys):
    PROBLEMS[operation](run_of(operation), 40, torch.float32, queries=queries, keys=keys, batch=2)


@pytest.mark.parametrize(
    ("grid", "window"),
    [((1, 1), (1, 1)), ((1, 9), (1, 17)), ((9, 2), (3, 3)), ((8, 8), (7, 7)), ((6, 10), (11, 19)), ((5, 17), (1, 1))],
    ids=str,
)
def test_windows(grid, window):
    """The largest windows reach further than one block of keys, and are normalised by a second launch."""
    PROBLEMS["local_affinity"](run_of("local_affinity"), 16, torch.float32, grid=grid, window=window, batch=2)


@pytest.mark.parametrize(
    ("grid", "cells"),
    [((1, 1), (1, 1)), ((8, 8), (4, 4)), ((5, 7), (5, 7)), ((9, 15), (1, 1)), ((9, 15), (1, 2)), ((7, 9), (6, 5))],
    ids=str,
)
def test_cells(grid, cells):
    """Single tokens, even, uneven, and cells of more keys than one block holds."""
    PROBLEMS["global_affinity"](run_of("global_affinity"), 16, torch.float32, grid=grid, cells=cells, batch=2)


def test_strides_do_not_matter():
    packed = torch.randn(2, 30, 2, 2, 40, generator=torch.Generator().manual_seed(7))
    w = random_weights(8, 2, 2)
    views = {
        "projections of a transformer": packed.permute(3, 0, 2, 1, 4),
        "columns apart": packed.permute(3, 0, 2, 4, 1).contiguous().transpose(-1, -2),
        "an odd offset": torch.cat([torch.zeros(1), packed.flatten()])[1:].view_as(packed).permute(3, 0, 2, 1, 4),
    }
    for name, (q, k) in views.items():
        for result, expected in [
            (nk.attention_entropy(q, k, backend="triton"), reference.attention_entropy(q, k)),
            (nk.fuse_attention(q, k, w, backend="triton"), reference.fuse_attention(q, k, w)),
        ]:
            assert relative_error(result, expected) < TOLERANCE, name


def test_offsets_beyond_32_bits(tmp_path):
    """Rows 2²⁸ elements apart, in a file that is mostly a hole."""
    rows, apart = 9, 2**28
    storage = torch.from_file(str(tmp_path / "sparse"), shared=True, size=(rows - 1) * apart + 16, dtype=torch.float16)
    q = storage.as_strided((1, 1, rows, 16), (0, 0, apart, 1))
    q.copy_(torch.randn(1, 1, rows, 16, generator=torch.Generator().manual_seed(0)))
    entropy = nk.attention_entropy(q, q, backend="triton")
    assert (entropy - reference.attention_entropy(q.clone(), q.clone())).abs().max() < TOLERANCE
    w = torch.ones(1, 1)
    u = nk.global_affinity(q, q, w, grid=(3, 3), cells=(2, 2), backend="triton").to_dense()
    assert relative_error(u, reference.global_affinity(q.clone(), q.clone(), w, grid=(3, 3), cells=(2, 2))) < TOLERANCE


def test_scores_of_ten_thousand_masked_keys_and_nan():
    q = torch.tensor([[[[1e4], [-1e4]]]])
    k = torch.tensor([[[[1.0], [-1.0], [0.0]]]])
    entropy, lse = nk.attention_entropy(q, k, scale=1.0, return_lse=True, backend="triton")
    assert entropy.flatten().tolist() == [0.0, 0.0]
    assert lse.flatten().tolist() == [1e4, 1e4]
    # a whole block of masked keys first, then ordinary ones
    q = torch.ones(1, 1, 2, 1)
    k = torch.full((1, 1, 70, 1), -math.inf)
    k[0, 0, 65:] = 0
    entropy = nk.attention_entropy(q, k, scale=1.0, backend="triton")
    assert entropy.sub(math.log(5)).abs().max() < 1e-6
    nothing = torch.full_like(k, -math.inf)
    for result in nk.attention_entropy(q, nothing, scale=1.0, return_lse=True, backend="triton"):
        assert result.isnan().all()
    q = torch.tensor([[[[math.nan], [1.0]]]])
    entropy = nk.attention_entropy(q, torch.ones(1, 1, 3, 1), backend="triton")
    assert entropy[0, 0, 0].isnan()
    assert abs(entropy[0, 0, 1].item() - math.log(3)) < 1e-6


@pytest.mark.parametrize("operation", ["attention_entropy", "attention_marginal"])
def test_scores_past_float32_are_refused(operation):
    """They came as NaN, where the definition has an entropy of 0."""
    q, k = growing_keys(40, torch.float32, 20, 70)
    call = getattr(nk, operation)
    with pytest.raises(ValueError, match=r"q, k, scale: expected scores within ±3.4e\+38, got \d+ rows beyond"):
        call(1e20 * q, 1e20 * k, backend="triton")
    with pytest.raises(ValueError, match="got 1 rows beyond"):
        call(q.index_fill(2, torch.tensor([3]), 1e20)[:, :1], k.sign()[:, :1] * 1e20, backend="triton")


@pytest.mark.parametrize("scale", [0.0, -0.4, 8.0])
def test_any_scale(scale):
    """0: all keys alike; negative; and rows that are almost one-hot."""
    q, k = growing_keys(40, torch.float32, 20, 70)
    entropy, lse = nk.attention_entropy(q, k, scale=scale, return_lse=True, backend="triton")
    expected, expected_lse = reference.attention_entropy(q, k, scale=scale, return_lse=True)
    exact = torch.special.entr(((q * scale) @ k.transpose(-1, -2)).double().softmax(-1)).sum(-1)
    assert relative_error(entropy, expected) <= 2 * relative_error(exact, expected) + 1e-6
    assert relative_error(lse, expected_lse) < TOLERANCE
    w = random_weights(1, 1, 2)
    fused = nk.fuse_attention(q, k, w, scale=scale, lse=lse, backend="triton")
    assert relative_error(fused, reference.fuse_attention(q, k, w, scale=scale)) < 1e-4


def test_a_window_without_mass_becomes_the_identity():
    grid, window = (2, 40), (1, 3)
    q, k = torch.ones(1, 1, 80, 1), torch.zeros(1, 1, 80, 1)
    k[0, 0, 0] = 300  # a sink that only its neighbours see in their window
    values = nk.local_affinity(q, k, torch.ones(1, 1), grid=grid, window=window, scale=1.0, backend="triton").values
    assert values[0, 20].tolist() == [0, 1, 0]
    assert values[0, 1].tolist() == [1, 0, 0]


def test_nothing_to_do_is_done():
    empty = torch.zeros(0, 2, 4, 8)
    assert nk.attention_entropy(empty, empty, backend="triton").shape == (0, 2, 4)
    no_heads = torch.zeros(1, 0, 4, 8)
    assert nk.fuse_attention(no_heads, no_heads, torch.zeros(1, 0), backend="triton").tolist() == [[[0.0] * 4] * 4]
    no_queries = torch.zeros(1, 2, 0, 8)
    assert nk.attention_marginal(no_queries, torch.ones(1, 2, 4, 8), backend="triton").tolist() == [[[0.0] * 4] * 2]


def test_at_most_four_launches_to_both_affinities(monkeypatch):
    q, k = growing_keys(8, torch.float32, 20, 20)
    w = random_weights(1, 1, 2)
    launched = []
    original = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (launched.append(self.kernel.__name__), original(self)))
    for window, most in ((3, 3), ((7, 9), 4)):
        launched.clear()
        _, lse = nk.attention_entropy(q, k, return_lse=True, backend="triton")
        nk.local_affinity(q, k, w, grid=(4, 5), window=window, lse=lse, backend="triton")
        nk.global_affinity(q, k, w, grid=(4, 5), lse=lse, backend="triton")
        assert len(launched) <= most


def test_gradients_pass_through_a_named_backend():
    q, k = (item.requires_grad_() for item in growing_keys(8, torch.float32, 5, 6))
    nk.attention_entropy(q, k, backend="triton").sum().backward()
    named = q.grad.clone()
    q.grad = None
    nk.attention_entropy(q, k, backend="eager").sum().backward()
    assert relative_error(named, q.grad) < 1e-4


def test_the_interpreter_is_never_chosen_and_refuses_what_it_gets_wrong():
    q = torch.ones(1, 1, 2, 4)
    assert "triton" in nk.available_backends()
    assert "triton" not in dispatch.choose("attention_entropy", None, q, q).__module__
    with pytest.raises(nk.BackendUnavailableError, match="multiplies bfloat16 wrongly"):
        nk.attention_entropy(q.bfloat16(), q.bfloat16(), backend="triton")
    with pytest.raises(nk.BackendUnavailableError, match="computes in float32, got float64 inputs"):
        nk.attention_entropy(q.double(), q.double(), backend="triton")
    wide = torch.ones(1, 1, 2, 300)
    with pytest.raises(nk.BackendUnavailableError, match="head sizes up to 256, got 300"):
        nk.attention_entropy(wide, wide, backend="triton")
