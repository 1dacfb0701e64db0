"""Each refiner against a plain transcription of the public code it replaces."""

from __future__ import annotations

import pytest
import torch
from tests.refiners import originals
from torch import Tensor

from nerve_kernels import reference, refiners
from nerve_kernels.refiners import label_propagation, pamr


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smooth(seed: int, channels: int, grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Features that vary slowly over the grid, (N, channels), as those of a vision model do."""
    coarse = draw(seed, 1, channels, 3, 3, dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse, size=grid, mode="bilinear", align_corners=True)
    noisy = fine.flatten(2)[0].T + 0.3 * draw(seed + 1, grid[0] * grid[1], channels, dtype=torch.float64)
    return noisy.to(dtype)


def picture(seed: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Two pictures of smooth colours with a little noise, sRGB in [0, 1]."""
    coarse = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    return (fine + 0.02 * draw(seed + 1, 2, 3, *size, dtype=torch.float64)).clamp(0, 1).to(dtype)


def test_cliper_is_the_published_product_of_heads_in_float32():
    """≤ 1e-4 but for rows with an entry within 1e-5 of a threshold, which are counted."""
    grid, heads = (16, 16), 10
    q = torch.stack([smooth(seed, 16, grid) for seed in range(heads)])[None]
    k = torch.stack([smooth(seed + 50, 16, grid) for seed in range(heads)])[None]
    k = 0.5 * k + q
    seeds = draw(99, 256, 21).softmax(-1)
    refined = refiners.cliper(q, k, seeds)
    published = originals.cliper(q[0], k[0], seeds)
    maps = reference.attention(q, k)[0]
    near = ((maps / (maps.amax(-2, keepdim=True) + 1e-5) - 0.1).abs() < 1e-5).any(-1)  # (heads, N)
    print(f"{int(near.sum())} of {near.numel()} rows have an entry within 1e-5 of the threshold")
    assert near.float().mean() < 0.05
    # one head at a time, from the same seeds: no row can be touched by another's
    for head in range(heads):
        one = refiners.cliper(q[:, head : head + 1], k[:, head : head + 1], seeds)
        difference = (one - originals.cliper(q[0, head : head + 1], k[0, head : head + 1], seeds)).abs().amax(-1)
        assert difference[~near[head]].max() < 1e-5
    assert (refined - published).abs().max() < 1e-4


def test_cliper_of_several_layers_multiplies_their_heads_in_order():
    q, k, seeds = draw(0, 1, 5, 48, 8, dtype=torch.float64), draw(1, 1, 5, 48, 8, dtype=torch.float64), draw(2, 48, 3)
    layers = [q[:, :2], q[:, 2:]], [k[:, :2], k[:, 2:]]
    expected = originals.cliper(q[0], k[0], seeds.double())
    torch.testing.assert_close(refiners.cliper(*layers, seeds.double()), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("beta", "gamma"), [(1.2, 3.0), (1.0, 3.0)], ids=["ProxyCLIP", "SC-CLIP"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_similarity_is_the_masked_softmax_of_proxyclip_and_scclip(dtype, beta, gamma):
    features, values = smooth(3, 24, (11, 14), dtype), draw(4, 154, 37, dtype=dtype)
    refined = refiners.similarity(features, values, beta=beta, gamma=gamma)
    expected = originals.similarity_weights(features, beta, gamma) @ values
    assert (refined - expected).abs().max() < (1e-13 if dtype == torch.float64 else 1e-5)
    by_definition = reference.similarity(features, values, beta=beta, gamma=gamma)
    assert (refined - by_definition).abs().max() < (1e-13 if dtype == torch.float64 else 1e-5)


def test_a_token_that_resembles_none_keeps_its_seed_where_the_public_code_has_no_number():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.1]])
    seeds = torch.tensor([[1.0], [2.0], [3.0]])
    assert (originals.similarity_weights(features, 1.2, 3.0) @ seeds).isnan().all()
    assert torch.equal(refiners.similarity(features, seeds), seeds)


def test_similarity_of_a_batch_takes_each_image_by_itself():
    features = torch.stack([smooth(5, 8, (6, 7)), smooth(9, 8, (6, 7)) + 2])
    seeds = draw(6, 2, 42, 3)
    both = refiners.similarity(features, seeds)
    for one, image, own in zip(both, features, seeds, strict=True):
        torch.testing.assert_close(one, refiners.similarity(image, own))


@pytest.mark.parametrize("iterations", [10, None])
def test_lposs_is_the_published_propagation_on_the_same_graph(iterations):
    grid, labels = (20, 23), 5
    features, scores = smooth(11, 16, grid), 0.2 * draw(12, grid[0] * grid[1], labels) + 0.2
    graph = originals.lposs_graph(features.double(), grid, k=60, power=3.0, sigma=0.01, patch=16)
    # the public code cuts conjugate gradients after 10 steps; both converge where they are not cut
    expected = originals.conjugate_gradients(graph, scores.double(), 0.95, iterations or 500, tol=1e-12)
    solved = refiners.lposs(features, scores, grid=grid, k=60, iterations=iterations)
    error = (solved - expected).abs().max()
    print(f"lposs, iterations={iterations}: {error:.1e} of scores up to {expected.abs().max():.2f}")
    assert error < 1e-5
    if iterations:
        exact = originals.conjugate_gradients(graph, scores.double(), 0.95, 500, tol=1e-12)
        assert (expected - exact).abs().max() > 1e-3, "cut is not converged, or this test would not tell them apart"


def test_lposs_of_windows_takes_their_patches_positions():
    grid = (6, 7)
    features, scores = smooth(13, 8, grid, torch.float64), draw(14, 42, 3, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij")
    positions = 8.0 * torch.stack([y, x], -1).view(-1, 2)
    by_grid = refiners.lposs(features, scores, grid=grid, patch_size=8, k=9)
    torch.testing.assert_close(refiners.lposs(features, scores, positions=positions, k=9), by_grid)
    nearer = refiners.lposs(features, scores, positions=positions / 4, k=9)
    assert (nearer - by_grid).abs().max() > 1e-3


def test_a_patch_that_resembles_none_keeps_its_scores():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    scores = torch.tensor([[1.0], [0.0], [3.0]])
    for iterations in (None, 10):
        assert refiners.lposs(features, scores, grid=(1, 3), k=2, iterations=iterations)[2].item() == 3.0


def test_blocks_of_labels_do_not_show(monkeypatch):
    features, scores = smooth(15, 8, (6, 7), torch.float64), draw(16, 42, 5, dtype=torch.float64)
    whole = refiners.lposs(features, scores, grid=(6, 7), k=9)
    monkeypatch.setattr(label_propagation, "SOLUTION_BYTES", 8 * 42 * 2)  # two labels at a time
    torch.testing.assert_close(refiners.lposs(features, scores, grid=(6, 7), k=9), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dilations", [(1,), (8, 16), (1, 2, 4, 8, 12, 24)], ids=str)
def test_pamr_is_the_public_module(dilations, dtype):
    image, mask = picture(17, (37, 45), dtype), draw(18, 2, 4, 9, 11, dtype=dtype).softmax(1)
    refined = refiners.PAMR(num_iter=10, dilations=list(dilations))(image, mask)
    expected = originals.pamr(image.double(), mask.double(), 10, dilations)
    error = (refined - expected).abs().max()
    print(f"PAMR, dilations {dilations}, {dtype}: {error:.1e}")
    assert refined.dtype == dtype
    assert error < (1e-5 if dtype == torch.float32 else 1e-12)


def test_pamr_in_blocks_of_labels_is_the_same(monkeypatch):
    image, mask = picture(19, (20, 23)), draw(20, 2, 7, 20, 23)
    whole = refiners.PAMR(4, [1, 3])(image, mask)
    monkeypatch.setattr(pamr, "BLOCK_BYTES", 4 * 2 * 20 * 23 * 3)  # three labels at a time
    assert torch.equal(refiners.PAMR(4, [1, 3])(image, mask), whole)


def test_pamr_takes_one_picture_for_a_batch_of_masks_and_no_iterations():
    image, mask = picture(21, (12, 14))[:1], draw(22, 3, 2, 6, 7)
    refined = refiners.PAMR(2, [1])(image, mask)
    torch.testing.assert_close(refined[1:2], refiners.PAMR(2, [1])(image, mask[1:2]))
    resized = torch.nn.functional.interpolate(mask, size=(12, 14), mode="bilinear", align_corners=True)
    torch.testing.assert_close(refiners.PAMR(0, [1])(image, mask), resized)


@pytest.mark.parametrize("iterations", [10, None])
def test_lposs_plus_is_the_published_propagation_on_the_same_graph(iterations):
    image, scores = picture(23, (26, 31))[:1], 0.2 * draw(24, 1, 3, 26, 31) + 0.2
    tau = 0.05  # these small pictures are rougher than photographs
    graph = originals.lposs_plus_graph(image.double(), tau, 13)
    columns = scores[0].flatten(1).T.double()
    expected = originals.conjugate_gradients(graph, columns, 0.95, iterations or 500, tol=1e-12)
    for pixels, bound in ((image.double(), 1e-5), (image, 3e-5)):  # weights from colours in float32 are another graph
        solved = refiners.lposs_plus(pixels, scores, tau=tau, iterations=iterations)[0].flatten(1).T
        error = (solved - expected).abs().max()
        print(f"lposs_plus, iterations={iterations}, {pixels.dtype}: {error:.1e} of up to {expected.abs().max():.2f}")
        assert error < bound


@pytest.mark.parametrize("iterations", [10, None])
def test_lposs_plus_without_the_compiled_solver_is_the_same(iterations, monkeypatch):
    image, scores = picture(25, (14, 17))[:1], draw(26, 1, 3, 7, 8)
    compiled = refiners.lposs_plus(image, scores, tau=0.1, window=5, iterations=iterations)
    monkeypatch.setattr(label_propagation, "_compiled_solver", lambda *arguments: None)
    plain = refiners.lposs_plus(image, scores, tau=0.1, window=5, iterations=iterations)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=2e-5)


def test_nerve_is_the_three_stages():
    import nerve_kernels as nk

    q, k, seeds = draw(7, 1, 3, 48, 8), draw(8, 1, 3, 48, 8), draw(9, 48, 4).softmax(-1)
    options = {"grid": (6, 8), "window": 3, "cells": 2}
    w = nk.head_weights(nk.attention_entropy(q, k), num_keys=48)
    S = nk.mix(
        nk.global_affinity(q, k, w, grid=(6, 8), cells=2), nk.local_affinity(q, k, w, grid=(6, 8), window=3), beta=0.5
    )
    expected = nk.random_walk(seeds, S, alpha=0.9, steps=20)
    torch.testing.assert_close(refiners.nerve(q, k, seeds, **options), expected, rtol=0, atol=1e-5)
    for criterion in ("information", "cell_information", "uniform"):
        layers = refiners.nerve([q], [k], seeds, grids=[(6, 8)], window=3, cells=2, criterion=criterion)
        single = refiners.nerve(q, k, seeds, **options, criterion=criterion)
        torch.testing.assert_close(layers, single, rtol=0, atol=1e-6)
