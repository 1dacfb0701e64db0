"""What holds for every input: mass, ranges, convergence, symmetries. Hypothesis looks for counterexamples."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.problems import queries_and_keys, walk_problem

import nerve_kernels as nk
from nerve_kernels import reference

# derandomized: the same examples on every run; no deadline: machines differ
settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("deterministic")

seeds = st.integers(0, 2**31 - 1)
sides = st.one_of(st.integers(1, 12), st.sampled_from([17, 37]))
odd_grids = st.sampled_from([(7, 11), (37, 37)])
grids = st.one_of(odd_grids, st.tuples(sides, sides).filter(lambda grid: grid[0] * grid[1] <= 1400))
alphas = st.floats(0, 0.98)
betas = st.floats(0, 1)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """A grid with a window and cells that fit it, uneven ones included."""
    grid = draw(grids)
    window = tuple(2 * draw(st.integers(0, min(side - 1, 4))) + 1 for side in grid)
    cells = tuple(draw(st.integers(1, min(side, 8))) for side in grid)
    return grid, window, cells  # type: ignore[return-value]


@given(seeds, layouts(), st.sampled_from([0.1, 1.0, 20.0]))
def test_rows_of_every_affinity_sum_to_one(seed, layout, scale):
    grid, window, cells = layout
    q, k = queries_and_keys(seed, 1, 2, grid[0] * grid[1], grid[0] * grid[1], 4)
    entropy, lse = nk.attention_entropy(q, k, scale=scale, return_lse=True)
    w = nk.head_weights(entropy, num_keys=k.shape[2])
    local = nk.local_affinity(q, k, w, grid=grid, window=window, scale=scale, lse=lse)
    low_rank = nk.global_affinity(q, k, w, grid=grid, cells=cells, scale=scale, lse=lse)
    ones = torch.ones(1, grid[0] * grid[1], 1)
    for affinity in (local, low_rank, nk.mix(low_rank, local, 0.3)):
        assert (affinity @ ones - 1).abs().max() < 2e-5
    assert local.values.min() >= 0
    assert low_rank.u.min() >= 0


@given(seeds, layouts(), alphas, betas, st.integers(0, 30))
def test_probabilities_stay_probabilities(seed, layout, alpha, beta, steps):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells, dtype=torch.float32)
    p = nk.random_walk(problem.seeds, problem.mixed(beta), alpha=alpha, steps=steps)
    assert p.min() >= 0
    assert p.max() <= 1
    assert (p.sum(-1) - 1).abs().max() < 1e-6
    # without the final division too: the walk itself keeps the mass
    raw = nk.random_walk(problem.seeds, problem.mixed(beta), alpha=alpha, steps=steps, normalize=False)
    assert (raw.sum(-1) - 1).abs().max() < 1e-5


@given(seeds, layouts(), alphas, betas, st.integers(0, 40))
def test_every_step_is_within_its_bound_of_the_limit(seed, layout, alpha, beta, steps):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells)
    affinity = problem.mixed(beta)
    limit = nk.random_walk_limit(problem.seeds, affinity, alpha=alpha, tol=1e-11)
    p = nk.random_walk(problem.seeds, affinity, alpha=alpha, steps=steps, normalize=False)
    spread = problem.seeds.amax(1) - problem.seeds.amin(1)
    assert ((p - limit).abs().amax(1) <= alpha**steps * spread + 1e-10).all()


@given(seeds, st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.0, 0.3, 5.0, 80.0]))
def test_entropy_lies_between_zero_and_the_logarithm_of_the_keys(seed, queries, keys, scale):
    q, k = queries_and_keys(seed, 1, 2, queries, keys, 3)
    entropy = nk.attention_entropy(q, k, scale=scale)
    assert entropy.min() >= 0
    assert entropy.max() <= math.log(keys) + 1e-5


@given(seeds, st.permutations(range(5)), st.sampled_from(["entropy", "information"]), st.integers(1, 5))
def test_permuting_heads_permutes_weights(seed, order, criterion, keep):
    q, k = queries_and_keys(seed, 2, 5, 12, 12, 4)
    order = list(order)

    def weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        marginal = nk.attention_marginal(q, k) if criterion == "information" else None
        entropy = nk.attention_entropy(q, k)
        return nk.head_weights(entropy, num_keys=12, criterion=criterion, marginal=marginal, keep=keep)

    assert (weights(q[:, order], k[:, order]) - weights(q, k)[:, order]).abs().max() < 1e-6


@given(seeds, layouts(), alphas, betas, st.floats(-3, 3), st.floats(-3, 3))
def test_the_walk_is_linear_in_its_seeds(seed, layout, alpha, beta, first, second):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells)
    other = problem.seeds.flip(1)

    def walk(seeds: torch.Tensor) -> torch.Tensor:
        return nk.random_walk(seeds, problem.mixed(beta), alpha=alpha, steps=6, normalize=False)

    combined = walk(first * problem.seeds + second * other)
    assert (combined - first * walk(problem.seeds) - second * walk(other)).abs().max() < 1e-12


@given(seeds, layouts(), st.integers(0, 9), st.booleans())
def test_alpha_zero_gives_the_seeds(seed, layout, steps, normalize):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells, dtype=torch.float32)
    p = nk.random_walk(problem.seeds, problem.mixed(0.5), alpha=0.0, steps=steps, normalize=normalize)
    assert (p - problem.seeds).abs().max() < 1e-6


@given(seeds, layouts(), alphas)
def test_beta_zero_and_one_are_the_pure_walks(seed, layout, alpha):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells)
    for beta, pure in ((0.0, problem.local), (1.0, problem.low_rank)):
        mixed = nk.random_walk(problem.seeds, problem.mixed(beta), alpha=alpha, steps=5)
        assert torch.equal(mixed, nk.random_walk(problem.seeds, pure, alpha=alpha, steps=5))


@given(seeds, layouts(), alphas, betas)
def test_dense_equals_structured(seed, layout, alpha, beta):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells)
    expected = reference.random_walk(problem.seeds, problem.dense(beta), alpha=alpha, steps=4)
    structured = nk.random_walk(problem.seeds, problem.mixed(beta), alpha=alpha, steps=4)
    dense = nk.random_walk(problem.seeds, problem.mixed(beta).to_dense(), alpha=alpha, steps=4)
    assert (structured - expected).abs().max() < 1e-12
    assert (dense - expected).abs().max() < 1e-12


@given(seeds, layouts(), st.integers(2, 3))
def test_batched_equals_one_by_one(seed, layout, batch):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells, batch=batch, dtype=torch.float32)
    q, k = queries_and_keys(seed, batch, 2, 20, 20, 4)
    p = nk.random_walk(problem.seeds, problem.mixed(0.4), alpha=0.8, steps=4)
    entropy = nk.attention_entropy(q, k)
    for index in range(batch):
        one = slice(index, index + 1)
        local = nk.LocalAffinity(problem.local.values[one], grid=grid, window=window)
        low_rank = nk.LowRankAffinity(problem.low_rank.u[one], grid=grid, cells=cells)
        alone = nk.random_walk(problem.seeds[one], nk.mix(low_rank, local, 0.4), alpha=0.8, steps=4)
        assert (alone - p[one]).abs().max() < 1e-6
        assert torch.equal(nk.attention_entropy(q[one], k[one]), entropy[one])


@given(seeds, layouts())
def test_strided_equals_contiguous(seed, layout):
    grid, window, cells = layout
    problem = walk_problem(seed, grid, window=window, cells=cells, dtype=torch.float32)
    wide = torch.empty(1, problem.seeds.shape[1], 2 * problem.seeds.shape[2])
    wide[:, :, ::2] = problem.seeds
    strided = wide[:, :, ::2]
    values = problem.local.values.transpose(1, 2).contiguous().transpose(1, 2)
    affinity = nk.mix(problem.low_rank, nk.LocalAffinity(values, grid=grid, window=window), 0.4)
    p = nk.random_walk(strided, affinity, alpha=0.8, steps=4)
    assert torch.equal(p, nk.random_walk(problem.seeds, problem.mixed(0.4), alpha=0.8, steps=4))
    assert torch.equal(affinity @ strided, problem.mixed(0.4) @ problem.seeds)
