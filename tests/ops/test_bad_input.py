"""Bad input is refused before a kernel starts: the argument's name, what came, what was wanted, what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import nerve_kernels as nk
from nerve_kernels import BackendUnavailableError
from nerve_kernels.walk import steps_for_tolerance

Q = torch.zeros(2, 3, 12, 4)
W = torch.full((2, 3), 1 / 3)
LSE = torch.zeros(2, 3, 12)
ENTROPY = torch.zeros(2, 3, 12)
SEEDS = torch.full((2, 12, 2), 0.5)
LOCAL = nk.LocalAffinity(torch.full((1, 12, 9), 1 / 9), grid=(3, 4), window=3)
GLOBAL = nk.LowRankAffinity(torch.full((1, 12, 4), 0.25), grid=(3, 4), cells=(2, 2))


def walk(seeds: Any = SEEDS, affinity: Any = LOCAL, **options: Any) -> torch.Tensor:
    return nk.random_walk(seeds, affinity, **{"alpha": 0.9, "steps": 3, **options})


def stencil(**options: Any) -> nk.LocalAffinity:
    return nk.LocalAffinity(torch.ones(1, 12, 9), **{"grid": (3, 4), "window": 3, **options})


def graph(row_pointers: list[int], columns: list[Any], **options: Any) -> nk.GraphAffinity:
    return nk.GraphAffinity(torch.tensor(row_pointers), torch.tensor(columns), torch.ones(len(columns)), **options)


CASES: list[tuple[str, type[Exception], Callable[[], Any], str]] = [
    # tensors
    ("q no tensor", TypeError, lambda: nk.attention_entropy([1.0], Q), "q: expected a torch.Tensor (B, heads, N, d), got list"),
    ("q shape", ValueError, lambda: nk.attention_entropy(Q[0], Q), "q: expected shape (B, heads, N, d), got (3, 12, 4)"),
    ("q dtype", TypeError, lambda: nk.attention_entropy(Q.long(), Q), "q: expected float32, float16, bfloat16 or float64, got torch.int64; convert"),
    ("k dtype", TypeError, lambda: nk.attention_entropy(Q, Q.double()), "k: expected the dtype of q, torch.float32, got torch.float64"),
    ("k heads", ValueError, lambda: nk.attention_entropy(Q, Q[:, :2]), "k: expected batch, heads and head size of q (2, 3, 12, 4), got (2, 2, 12, 4)"),
    ("no keys", ValueError, lambda: nk.attention_entropy(Q, Q[:, :, :0]), "k: expected at least one key and a head size ≥ 1, got (2, 3, 0, 4)"),
    ("device", ValueError, lambda: nk.attention_entropy(Q, Q.to("meta")), "k: expected to be on cpu as q is, got meta; move it with k.to('cpu')"),
    ("scale", ValueError, lambda: nk.attention_entropy(Q, Q, scale=math.inf), "scale: expected a number that float32 can hold, got inf"),
    ("lse shape", ValueError, lambda: nk.attention_marginal(Q, Q, lse=LSE[:, :2]), "lse: expected (B, heads, N) of q = (2, 3, 12), got (2, 2, 12)"),
    ("lse dtype", TypeError, lambda: nk.fuse_attention(Q, Q, W, lse=LSE.half()), "lse: expected float32 or float64 as attention_entropy returns it, got torch.float16"),
    ("w shape", ValueError, lambda: nk.fuse_attention(Q, Q, W[:, :2]), "w: expected (B, heads) of q = (2, 3), got (2, 2)"),
    ("maps shape", ValueError, lambda: nk.attention_map_entropy(Q[0]), "maps: expected shape (B, heads, N, N_k), got (3, 12, 4)"),
    # head weights
    ("criterion", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, criterion="sharp"), "criterion: expected 'entropy', 'information', 'cell_information' or 'uniform', got 'sharp'"),
    ("temperature", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, temperature=0), "temperature: expected a number > 0, got 0"),
    ("keep", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, keep=4), "keep: expected at most the 3 heads there are, got 4"),
    ("keep none", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, keep=0), "keep: expected an int ≥ 1, got 0"),
    ("num_keys", ValueError, lambda: nk.head_weights([ENTROPY] * 2, num_keys=[12]), "num_keys: expected 2 numbers, one for each layer, got 1"),
    ("no layer", ValueError, lambda: nk.head_weights([], num_keys=[]), "entropy: expected at least one layer, got an empty list"),
    ("no marginal", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, criterion="information"), "marginal: expected attention_marginal(q, k) of each layer for criterion='information', got None"),
    ("idle marginal", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, marginal=LSE), "marginal: expected None, as criterion='entropy' does not use it, got Tensor; give criterion='information' with it"),
    ("marginal of uniform", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, criterion="uniform", marginal=LSE), "marginal: expected None, as criterion='uniform' does not use it, got Tensor"),
    ("batches", ValueError, lambda: nk.head_weights([ENTROPY, ENTROPY[:1]], num_keys=[12, 12]), "entropy: expected one batch size in all layers"),
    ("tiny temperature", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, temperature=1e-320), "temperature: expected a number > 0, got 1e-320"),
    ("endless temperature", ValueError, lambda: nk.head_weights(ENTROPY, num_keys=12, temperature=10**400), "temperature: expected a number > 0, got inf"),
    ("no heads", ValueError, lambda: nk.head_weights(ENTROPY[:, :0], num_keys=12), "entropy: expected at least one head and one row to average, got (2, 0, 12)"),
    ("entropy type", TypeError, lambda: nk.head_weights(None, num_keys=12), "entropy: expected a tensor, or a list of them, one for each layer, got NoneType"),
    ("num_keys type", TypeError, lambda: nk.head_weights(ENTROPY, num_keys=None), "num_keys: expected an int, or a list of ints, one a layer, got NoneType"),
    ("sparse", TypeError, lambda: nk.attention_entropy(Q.to_sparse(), Q), "q: expected a dense tensor, got torch.sparse_coo; convert it with q.to_dense()"),
    ("scale past float32", ValueError, lambda: nk.attention_entropy(Q, Q, scale=1e39), "scale: expected a number that float32 can hold, got 1e+39"),
    # grids, windows, cells
    ("grid type", TypeError, lambda: nk.local_affinity(Q, Q, W, grid=12, window=3), "grid: expected a pair of ints (H, W), got 12"),
    ("grid none", ValueError, lambda: nk.local_affinity(Q, Q, W, window=3), "grid: expected (H, W) of the tokens, got None"),
    ("grid tokens", ValueError, lambda: nk.local_affinity(Q, Q, W, grid=(3, 5), window=3), "grid: expected H · W = 12 tokens as q has, got 3 × 5 = 15"),
    ("grid empty", ValueError, lambda: nk.local_affinity(Q, Q, W, grid=(0, 5), window=3), "grid: expected H ≥ 1 and W ≥ 1, got (0, 5)"),
    ("even window", ValueError, lambda: nk.local_affinity(Q, Q, W, grid=(3, 4), window=4), "window: expected odd sizes ≥ 1, so that a token is at the centre, got 4"),
    ("wide window", ValueError, lambda: nk.local_affinity(Q, Q, W, grid=(3, 4), window=7), "window: expected at most 2 · side − 1 = 5 for a grid side of 3, got 7"),
    ("window type", TypeError, lambda: nk.local_affinity(Q, Q, W, grid=(3, 4), window=2.0), "window: expected an odd int or a pair of odd ints, got 2.0"),
    ("many cells", ValueError, lambda: nk.global_affinity(Q, Q, W, grid=(3, 4), cells=(4, 4)), "cells: expected 1 to 3 cells along a grid side of 3 tokens, got (4, 4)"),
    ("cells type", TypeError, lambda: nk.global_affinity(Q, Q, W, grid=(3, 4), cells="2"), "cells: expected an int or a pair of ints (h, w), got '2'"),
    ("grids missing", ValueError, lambda: nk.local_affinity([Q], [Q], [W], window=3), "grids: expected 1 pairs (H, W), one for each layer of q, got None"),
    ("grids idle", ValueError, lambda: nk.local_affinity(Q, Q, W, grid=(3, 4), grids=[(3, 4)], window=3), "grids: expected None where q is one layer, got [(3, 4)]; give grid=(H, W)"),
    ("q type", TypeError, lambda: nk.local_affinity("q", Q, W, grid=(3, 4), window=3), "q: expected a tensor, or a list of them, one for each layer, got str"),
    ("grids type", TypeError, lambda: nk.local_affinity([Q], [Q], [W], grids=3, window=3), "grids: expected 1 pairs (H, W), one for each layer of q, got int"),
    ("lists", ValueError, lambda: nk.local_affinity([Q], [Q, Q], [W], grids=[(3, 4)], window=3), "k: expected 1 tensors, one for each layer of q, got 2"),
    ("layer named", ValueError, lambda: nk.global_affinity([Q, Q], [Q, Q[:, :2]], [W, W], grids=[(3, 4)] * 2), "layer 1: k: expected batch, heads and head size of q"),
    # affinities
    ("no values, no grid", TypeError, lambda: nk.LocalAffinity(None, grid=(), window=1), "grid: expected a pair of ints (H, W), got ()"),
    ("u and grid of no kind", TypeError, lambda: nk.LowRankAffinity(None, grid=("a", "b"), cells=1), "grid: expected a pair of ints (H, W), got ('a', 'b')"),
    ("values columns", ValueError, lambda: nk.LocalAffinity(torch.zeros(1, 12, 8), grid=(3, 4), window=3), "values: expected 3 × 3 = 9 columns for window (3, 3), got (1, 12, 8)"),
    ("u columns", ValueError, lambda: nk.LowRankAffinity(torch.zeros(1, 12, 3), grid=(3, 4), cells=(2, 2)), "u: expected 2 × 2 = 4 columns for cells (2, 2), got (1, 12, 3)"),
    ("v and cells", ValueError, lambda: nk.LowRankAffinity(torch.zeros(1, 12, 4), torch.zeros(1, 12, 4), grid=(3, 4), cells=(2, 2)), "v, cells: expected exactly one of them (v for explicit factors), got both"),
    ("no v, no cells", ValueError, lambda: nk.LowRankAffinity(torch.zeros(1, 12, 4), grid=(3, 4)), "got neither"),
    ("v shape", ValueError, lambda: nk.LowRankAffinity(torch.zeros(1, 12, 4), torch.zeros(1, 12, 3), grid=(3, 4)), "v: expected the shape of u = (1, 12, 4), got (1, 12, 3)"),
    ("beta", ValueError, lambda: nk.mix(GLOBAL, LOCAL, 1.5), "beta: expected a number in [0, 1], got 1.5"),
    ("mix order", TypeError, lambda: nk.mix(LOCAL, GLOBAL), "s_global: expected a LowRankAffinity, got LocalAffinity"),
    ("mix grids", ValueError, lambda: nk.mix(nk.LowRankAffinity(torch.zeros(1, 12, 1), grid=(4, 3), cells=(1, 1)), LOCAL), "s_local: expected the grid of s_global, (4, 3), got (3, 4)"),
    ("dense shape", ValueError, lambda: nk.LocalAffinity.from_dense(torch.zeros(1, 12, 11), grid=(3, 4), window=3), "matrix: expected (B, N, N) = (1, 12, 12), got (1, 12, 11)"),
    ("product tokens", ValueError, lambda: LOCAL @ SEEDS[:, :5], "P: expected 12 tokens as the affinity has, got (2, 5, 2)"),
    # the walk
    ("seeds type", TypeError, lambda: walk([0.5]), "seeds: expected a torch.Tensor (B, N, C) or (N, C), got list"),
    ("seeds shape", ValueError, lambda: walk(SEEDS[0, 0]), "seeds: expected a torch.Tensor (B, N, C) or (N, C), got (2,)"),
    ("seeds dtype", TypeError, lambda: walk(SEEDS.long()), "seeds: expected float32, float16, bfloat16 or float64, got torch.int64"),
    ("affinity type", TypeError, lambda: walk(affinity=[1]), "affinity: expected a LocalAffinity, GraphAffinity, LowRankAffinity, MixedAffinity or a dense tensor (B, N, N), got list"),
    ("affinity tokens", ValueError, lambda: walk(SEEDS[:, :6]), "affinity: expected H · W = 6 tokens as seeds has, got 3 × 4 = 12"),
    ("dense tokens", ValueError, lambda: walk(affinity=torch.zeros(1, 11, 11)), "affinity: expected (B, N, N) for the seeds' N tokens = (1, 12, 12), got (1, 11, 11)"),
    ("batch", ValueError, lambda: walk(torch.zeros(3, 12, 2), torch.zeros(2, 12, 12)), "affinity: expected a batch of 3 as seeds have, or 1 for all of them, got 2"),
    ("walk device", ValueError, lambda: walk(SEEDS.to("meta")), "values: expected to be on meta as seeds is, got cpu"),
    ("alpha one", ValueError, lambda: walk(alpha=1.0, steps=None, tol=0.1), "alpha: expected a number in [0, 1) with tol, got 1.0; give steps"),
    ("alpha nan", ValueError, lambda: walk(alpha=math.nan), "alpha: expected a number in [0, 1], got nan"),
    ("alpha type", TypeError, lambda: walk(alpha="0.9"), "alpha: expected a number in [0, 1], got str"),
    ("dilation", ValueError, lambda: stencil(dilations=(0,)), "dilations[0]: expected an int ≥ 1, got 0"),
    ("dilation past the grid", ValueError, lambda: stencil(dilations=(1, 4)), "dilations[1]: expected at most 2 for a window of 3 on a grid side of 3, got 4; a larger one would reach no token"),
    ("dilation twice", ValueError, lambda: stencil(dilations=(1, 1)), "dilations: expected each of them once, got (1, 1)"),
    ("no dilation", ValueError, lambda: stencil(dilations=()), "dilations: expected at least one, got ()"),
    ("stencil columns", ValueError, lambda: stencil(dilations=(1, 2)), "values: expected 2 × 3 × 3 = 18 columns for window (3, 3), got (1, 12, 9)"),
    ("stencil columns, no centre", ValueError, lambda: stencil(centre=False), "values: expected (3 × 3 − 1) = 8 columns for window (3, 3), got (1, 12, 9)"),
    ("stencil of nothing", ValueError, lambda: stencil(window=1, centre=False), "window: expected more than one place without the centre, got (1, 1)"),
    ("border", ValueError, lambda: stencil(border="reflect"), "border: expected 'zero' or 'clamp', got 'reflect'"),
    ("column past the graph", ValueError, lambda: graph([0, 1, 2], [0, 2]), "columns: expected tokens from 0 to 1, got columns from 0 to 2"),
    ("column before the graph", ValueError, lambda: graph([0, 1, 2], [0, -1]), "columns: expected tokens from 0 to 1, got columns from -1 to 0"),
    ("row pointers fall", ValueError, lambda: graph([0, 2, 1], [0, 1]), "row_pointers: expected 0 first, and none below the one before, got others"),
    ("row pointers past the entries", ValueError, lambda: graph([0, 1, 3], [0, 1]), "row_pointers: expected at most 2, as there are entries, got 3"),
    ("columns type", TypeError, lambda: graph([0, 1], [0.0]), "columns: expected int32 or int64, got torch.float32"),
    ("values of a graph", ValueError, lambda: nk.GraphAffinity(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(2)), "values: expected 1 entries as columns has, got (1, 2)"),
    ("tol of a symmetric graph", ValueError, lambda: nk.random_walk(SEEDS[:, :2], graph([0, 1, 2], [1, 0], symmetric=True), alpha=0.5, tol=0.1), "tol: expected None with a symmetric affinity, whose rows need not sum to 1, got 0.1; give steps"),
    ("more neighbours than tokens", ValueError, lambda: nk.knn_affinity(torch.ones(1, 3, 2), 4), "k: expected an int from 1 to N = 3, got 4"),
    ("one-sided symmetric", ValueError, lambda: nk.knn_affinity(torch.ones(1, 3, 2), 1, symmetric=False, normalize="symmetric"), "normalize: expected 'row' or 'none' where symmetric is False"),
    ("distances without positions", ValueError, lambda: nk.knn_affinity(torch.ones(1, 3, 2), 1, distance_scale=1.0), "positions: expected (B, N, 2) where distance_scale is not 0, got None"),
    ("graph on another grid", ValueError, lambda: nk.mix(nk.LowRankAffinity(torch.ones(1, 12, 1), grid=(3, 4), cells=1), graph([0, 1, 2], [0, 1])), "s_global: expected H · W = 2 tokens as s_local has"),
    ("steps", ValueError, lambda: walk(steps=-1), "steps: expected an int ≥ 0, got -1"),
    ("steps type", TypeError, lambda: walk(steps=2.5), "steps: expected an int ≥ 0, got float"),
    ("too many steps", ValueError, lambda: walk(steps=10**30), "steps: expected an int ≥ 0 and below 2⁶³, got one of 100 bits"),
    ("years of steps", ValueError, lambda: walk(steps=10**8), "steps: expected at most 10,000,000 steps, got 100,000,000; call random_walk_limit"),
    ("tol out of reach", ValueError, lambda: walk(steps=None, tol=1e-6, alpha=1 - 1e-9), "tol: expected at most 10,000,000 steps, got 1e-06, that is 13,815,510,"),
    ("scores past float32", ValueError, lambda: nk.attention_entropy(Q + 1e20, Q + 1e20), "q, k, scale: expected scores within ±3.4e+38, got "),
    ("scores past float32, eager", ValueError, lambda: nk.attention_entropy(Q - 1e20, Q + 1e20, backend="eager"), "q, k, scale: expected scores within ±3.4e+38, got "),
    ("check of scores", TypeError, lambda: nk.attention_entropy(Q, Q, check=1), "check: expected True or False, got int"),
    ("scores past float64", ValueError, lambda: nk.attention_entropy(Q.double() + 1e200, Q.double() + 1e200), "q, k, scale: expected scores within ±1.8e+308, got "),
    ("alpha past floats", ValueError, lambda: walk(alpha=10**400), "alpha: expected a number in [0, 1], got inf"),
    ("normalize type", TypeError, lambda: walk(normalize=None), "normalize: expected True or False, got NoneType"),
    ("check type", TypeError, lambda: walk(check=1), "check: expected True or False, got int"),
    ("steps and tol", ValueError, lambda: walk(tol=0.1), "steps, tol: expected exactly one of them, got steps=3 and tol=0.1"),
    ("no steps, no tol", ValueError, lambda: walk(steps=None), "steps, tol: expected exactly one of them, got steps=None and tol=None"),
    ("tol", ValueError, lambda: steps_for_tolerance(0.5, 0.0), "tol: expected a number > 0, got 0.0"),
    ("one label", ValueError, lambda: walk(SEEDS[..., :1]), "normalize: expected False with a single label (C = 1), got True; give normalize=False: every row would be divided by itself and the result be all ones"),
    ("limit alpha", ValueError, lambda: nk.random_walk_limit(SEEDS, LOCAL, alpha=-0.1), "alpha: expected a number in [0, 1), got -0.1"),
    # values, looked at on request
    ("not finite", ValueError, lambda: walk(torch.full((1, 12, 2), math.nan), check=True), "seeds: expected finite numbers, got 24 that are not"),
    ("seeds range", ValueError, lambda: walk(3 * SEEDS, steps=None, tol=0.1, check=True), "seeds: expected values in [0, 1], which tol needs, got values in [1.5, 1.5]; normalise them or give steps"),
    ("rows", ValueError, lambda: walk(steps=None, tol=0.1, check=True), "affinity: expected rows that sum to 1, which tol needs, got sums in [0.444444, 1]; normalise its rows or give steps"),
    # backends
    ("backend type", TypeError, lambda: walk(backend=3), "backend: expected a name such as 'cpp', or None for the best, got int"),
    ("no such backend", BackendUnavailableError, lambda: walk(backend="cudnn"), "random_walk: backend='cudnn' cannot run: there is no such backend"),
    ("no kernel", BackendUnavailableError, lambda: nk.attention_map_entropy(Q, backend="cuda"), "attention_map_entropy: backend='cuda' cannot run: there is no cuda implementation of attention_map_entropy in this version"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "call", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_refused_by_name(error, call, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        call()
    if error is not BackendUnavailableError:
        assert re.fullmatch(r"(layer \d+: )?[\w, ]+(\[\d+\])?: expected .+, got [^;]+(; .+)?", str(raised.value))


def test_a_single_label_walks_without_normalisation():
    seeds = torch.rand(1, 12, 1, generator=torch.Generator().manual_seed(0))
    result = nk.random_walk(seeds, LOCAL, alpha=0.5, steps=2, normalize=False)
    assert result.shape == (1, 12, 1)
    assert (result < 1).all()


def test_check_accepts_what_is_right():
    stochastic = nk.LocalAffinity.from_dense(torch.ones(1, 12, 12), grid=(3, 4), window=3)
    expected = nk.random_walk(SEEDS, stochastic, alpha=0.5, tol=0.01)
    assert torch.equal(nk.random_walk(SEEDS, stochastic, alpha=0.5, tol=0.01, check=True), expected)
    matrix = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    for exact in (
        matrix,
        nk.LocalAffinity.from_dense(matrix, grid=(3, 4), window=3),
    ):  # their rows are summed in float64 too
        assert nk.random_walk(SEEDS.double(), exact, alpha=0.5, tol=0.01, check=True).shape == SEEDS.shape
    half = stochastic.to(torch.bfloat16)
    assert nk.random_walk(SEEDS, half, alpha=0.5, tol=0.01, check=True).shape == SEEDS.shape


def test_a_result_that_only_check_would_refuse_is_not_touched_without_it():
    seeds = torch.full((1, 12, 2), 0.5)
    seeds[0, 0, 0] = math.nan
    result = nk.random_walk(seeds, LOCAL, alpha=0.5, steps=0)
    assert result.isnan().sum() == 2, "the row with the NaN, and no other"


def test_a_tiny_temperature_gives_the_best_head_everything():
    entropy = torch.tensor([[[0.5], [0.25], [0.75]]])
    for temperature in (1e-37, 1e-30):
        assert nk.head_weights(entropy, num_keys=9, temperature=temperature).tolist() == [[0, 1, 0]]
    weights = nk.head_weights(entropy, num_keys=9, temperature=3e38, keep=2)
    assert torch.equal(weights, torch.tensor([[0.5, 0.5, 0.0]]))
