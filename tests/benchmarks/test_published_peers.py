"""The published refiners, as we wrote them, have the properties that their papers give them."""

from __future__ import annotations

import pytest
import torch
from benchmarks.operations.problems import Problem
from benchmarks.operations.sizes import SMALL_IMAGE
from benchmarks.peers import published

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


@pytest.fixture
def problem() -> Problem:
    return Problem(SMALL_IMAGE)


def test_the_order_of_a_chain_of_heads_does_not_change_it(problem: Problem) -> None:
    printed, reassociated = published.cliper_as_printed(problem)(), published.cliper_reassociated(problem)()
    torch.testing.assert_close(printed, reassociated)
    torch.testing.assert_close(printed.sum(-1), torch.ones(1, SMALL_IMAGE.tokens))  # each map is row-stochastic


def test_the_neighbour_graph_is_symmetric_and_of_spectral_norm_one(problem: Problem) -> None:
    features = problem.k[0].transpose(0, 1).reshape(SMALL_IMAGE.tokens, -1)
    dense = published.neighbour_graph(features, SMALL_IMAGE.grid).to_dense()
    torch.testing.assert_close(dense, dense.T)
    assert dense.diagonal().abs().max() == 0
    assert torch.linalg.eigvalsh(dense.double()).abs().max() <= 1 + 1e-6


def test_label_propagation_solves_its_system(problem: Problem) -> None:
    features = problem.k[0].transpose(0, 1).reshape(SMALL_IMAGE.tokens, -1)
    graph = published.neighbour_graph(features, SMALL_IMAGE.grid).to_dense().double()
    system = torch.eye(SMALL_IMAGE.tokens).double() - published.LPOSS_ALPHA * graph
    expected = torch.linalg.solve(system, problem.seeds[0].double())
    torch.testing.assert_close(published.lposs_style(problem)()[0].double(), expected, rtol=1e-3, atol=1e-4)


def test_mask_refinement_averages_neighbours_of_like_colour(problem: Problem) -> None:
    result = published.pamr(problem)()
    torch.testing.assert_close(result.sum(-1), torch.ones(1, SMALL_IMAGE.tokens))
    # two halves of different colour: no label crosses the border
    height, width = SMALL_IMAGE.grid
    problem.image = torch.zeros(1, 3, height, width)
    problem.image[..., width // 2 :] = 1
    problem.image += 1e-4 * torch.rand(problem.image.shape, generator=torch.Generator().manual_seed(0))
    left = torch.zeros(height, width)
    left[:, : width // 2] = 1
    problem.seeds = torch.stack([left, 1 - left, torch.zeros_like(left)], dim=-1).view(1, -1, 3)
    spread = published.pamr(problem)()[0, :, 0].view(height, width)
    assert spread[:, : width // 2].min() > 0.9
    assert spread[:, width // 2 :].max() < 0.1
