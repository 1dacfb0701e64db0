"""Gradients of every operator against finite differences in float64, and what they are good for."""

from __future__ import annotations

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, walk_problem

import nerve_kernels as nk
from nerve_kernels._operators.attention import score_blocks

GRID = (3, 4)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in more than one block, so that a gradient that forgets one is seen."""
    monkeypatch.setattr(score_blocks, "CPU_BLOCK_ELEMENTS", 60)


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def test_gradients_of_stage_one():
    q, k = leaves(*queries_and_keys(0, 2, 2, 7, 9, 3, torch.float64))
    (w,) = leaves(random_weights(1, 2, 2, torch.float64))
    assert torch.autograd.gradcheck(lambda q, k: nk.attention_entropy(q, k, return_lse=True), (q, k))
    assert torch.autograd.gradcheck(nk.attention_marginal, (q, k))
    assert torch.autograd.gradcheck(nk.fuse_attention, (q, k, w))
    (maps,) = leaves(torch.rand(1, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).add(0.1))
    (map_weights,) = leaves(random_weights(3, 1, 2, torch.float64))
    assert torch.autograd.gradcheck(nk.attention_map_entropy, (maps,))
    assert torch.autograd.gradcheck(nk.fuse_attention_maps, (maps, map_weights))


@pytest.mark.parametrize("criterion", ["entropy", "information"])
def test_gradients_through_head_weights(criterion):
    q, k = leaves(*queries_and_keys(4, 1, 3, 6, 6, 3, torch.float64))

    def weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        marginal = nk.attention_marginal(q, k) if criterion == "information" else None
        entropy = nk.attention_entropy(q, k)
        return nk.head_weights(entropy, num_keys=6, criterion=criterion, marginal=marginal, temperature=0.5)

    assert torch.autograd.gradcheck(weights, (q, k))


def test_gradients_of_both_affinities():
    q, k = leaves(*queries_and_keys(5, 2, 2, 12, 12, 3, torch.float64))
    (w,) = leaves(random_weights(6, 2, 2, torch.float64))
    assert torch.autograd.gradcheck(lambda q, k, w: nk.local_affinity(q, k, w, grid=GRID, window=3).values, (q, k, w))
    assert torch.autograd.gradcheck(lambda q, k, w: nk.global_affinity(q, k, w, grid=GRID, cells=(2, 3)).u, (q, k, w))


def test_gradients_of_affinities_over_layers_of_two_grids():
    fine = queries_and_keys(7, 1, 1, 12, 12, 2, torch.float64)
    coarse = queries_and_keys(8, 1, 1, 4, 4, 2, torch.float64)
    inputs = leaves(*fine, *coarse)
    w = [torch.full((1, 1), 0.5, dtype=torch.float64)] * 2

    def both(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = [tensors[0], tensors[2]], [tensors[1], tensors[3]]
        grids = [GRID, (2, 2)]
        local = nk.local_affinity(q, k, w, grids=grids, window=3)
        return local.values, nk.global_affinity(q, k, w, grids=grids).u

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize(
    ("cells", "affinity_batch", "normalize"),
    [((3, 3), 2, True), ((2, 2), 1, True), ((2, 1), 2, False), (None, 1, False)],
    ids=["even cells", "uneven cells", "not normalised", "factors"],
)
def test_gradients_of_the_walk(cells, affinity_batch, normalize):
    problem = walk_problem(9, (3, 3), labels=2, batch=2, affinity_batch=affinity_batch, cells=cells)
    parts = [problem.seeds, problem.local.values, problem.low_rank.u]
    inputs = leaves(*parts, *([problem.low_rank.v] if cells is None else []))

    def walk(seeds: torch.Tensor, values: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None = None):
        low_rank = nk.LowRankAffinity(u, v, grid=(3, 3), cells=cells)
        mixed = nk.mix(low_rank, nk.LocalAffinity(values, grid=(3, 3), window=3), 0.3)
        return nk.random_walk(seeds, mixed, alpha=0.7, steps=5, normalize=normalize)

    assert torch.autograd.gradcheck(walk, inputs)


def test_gradients_of_the_walk_on_a_dense_affinity_and_without_steps():
    problem = walk_problem(10, (2, 3), batch=2, affinity_batch=1)
    seeds, dense = leaves(problem.seeds, problem.dense(0.5))
    for steps in (0, 1, 6):
        assert torch.autograd.gradcheck(
            lambda seeds, dense, steps=steps: nk.random_walk(seeds, dense, alpha=0.6, steps=steps), (seeds, dense)
        )


@pytest.mark.parametrize("grid", [(3, 4), (17, 16)], ids=["dense solve", "Krylov solve"])
def test_gradients_of_the_limit(grid):
    problem = walk_problem(11, grid, labels=2)
    inputs = leaves(problem.seeds, problem.local.values, problem.low_rank.u)

    def limit(seeds: torch.Tensor, values: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        mixed = nk.mix(
            nk.LowRankAffinity(u, grid=grid, cells=(2, 2)), nk.LocalAffinity(values, grid=grid, window=3), 0.3
        )
        result = nk.random_walk_limit(seeds, mixed, alpha=0.6, tol=1e-11)
        assert isinstance(result, torch.Tensor)
        return result

    # fast_mode compares one random projection: the full Jacobian of 272 tokens would take minutes
    assert torch.autograd.gradcheck(limit, inputs, fast_mode=grid != (3, 4), atol=1e-6)


def test_gradients_of_products():
    problem = walk_problem(12, (4, 5), batch=2, affinity_batch=1, window=(3, 5))
    p, values, u = leaves(problem.seeds, problem.local.values, problem.low_rank.u)
    assert torch.autograd.gradcheck(
        lambda p, values: nk.LocalAffinity(values, grid=(4, 5), window=(3, 5)) @ p, (p, values)
    )
    assert torch.autograd.gradcheck(lambda p, u: nk.LowRankAffinity(u, grid=(4, 5), cells=(2, 2)) @ p, (p, u))


def test_window_values_are_learned_by_descent_on_a_scene():
    """Two halves of a picture, noisy seeds: learning whom to listen to lowers the loss and the errors."""
    generator = torch.Generator().manual_seed(13)
    truth = (torch.arange(12) >= 6).long().repeat(12)
    seeds = torch.full((1, 144, 2), 0.5)
    seeds[0, torch.arange(144), truth] += 0.1 * torch.randn(144, generator=generator) + 0.05
    seeds = (seeds / seeds.sum(-1, keepdim=True)).clamp(0.01, 0.99)
    logits = torch.zeros(1, 144, 9, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    losses = []
    for _ in range(25):
        affinity = nk.LocalAffinity(logits.softmax(-1), grid=(12, 12), window=3)
        p = nk.random_walk(seeds, affinity, alpha=0.9, steps=8)
        loss = torch.nn.functional.nll_loss(p[0].clamp_min(1e-6).log(), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    assert (p[0].argmax(-1) == truth).float().mean() > (seeds[0].argmax(-1) == truth).float().mean()
