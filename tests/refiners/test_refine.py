"""nk.refine: sizes in and out, what each method needs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import nerve_kernels as nk
from nerve_kernels import refiners
from nerve_kernels.capturing.attention import CapturedAttention, CapturedLayer
from nerve_kernels.refiners import memory

GRID = (6, 8)
Q = torch.randn(1, 2, 48, 8, generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(1, 5, *GRID, generator=torch.Generator().manual_seed(1)) + 1
IMAGE = torch.rand(1, 3, 30, 41, generator=torch.Generator().manual_seed(2))
SCORES = torch.rand(1, 4, *GRID, generator=torch.Generator().manual_seed(3))
INPUTS: dict[str, dict[str, Any]] = {
    "nerve": {"attention": (Q, Q), "window": 3},
    "cliper": {"attention": (Q, Q)},
    "similarity": {"features": FEATURES},
    "lposs": {"features": FEATURES, "alpha": 0.5},
    "lposs+": {"window": 5, "alpha": 0.5},
    "pamr": {"dilations": (1, 4)},
}


def as_columns(scores: Tensor) -> Tensor:
    return scores.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("method", INPUTS)
def test_the_result_has_the_size_of_the_picture(method):
    refined = nk.refine(SCORES, image=IMAGE, method=method, **INPUTS[method])
    assert refined.shape == (1, 4, 30, 41)
    assert refined.dtype == torch.float32
    assert refined.isfinite().all()


def test_tokens_are_refined_on_their_grid_and_brought_to_the_picture():
    refined = nk.refine(SCORES, image=IMAGE, attention=(Q, Q), method="cliper", threshold=0.3)
    tokens = refiners.cliper(Q, Q, as_columns(SCORES), threshold=0.3).transpose(1, 2).unflatten(2, GRID)
    expected = functional.interpolate(tokens, size=(30, 41), mode="bilinear", align_corners=False)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-6)


def test_methods_on_pixels_are_their_functions():
    by_name = nk.refine(SCORES, image=IMAGE, method="pamr", num_iter=3)
    assert torch.equal(by_name, refiners.PAMR(3, (8, 16))(IMAGE, SCORES))
    by_name = nk.refine(SCORES, image=IMAGE, method="lposs+", window=3)
    assert torch.equal(by_name, refiners.lposs_plus(IMAGE, SCORES, window=3))


def test_without_a_picture_the_size_is_that_of_the_scores():
    scores = functional.interpolate(SCORES, size=(24, 32), mode="bilinear")
    assert nk.refine(scores, features=FEATURES, method="similarity").shape == (1, 4, 24, 32)


def test_a_square_token_grid_serves_scores_of_any_size():
    q = torch.randn(1, 2, 36, 8, generator=torch.Generator().manual_seed(4))
    assert nk.refine(SCORES, image=IMAGE, attention=(q, q), window=3).shape == (1, 4, 30, 41)


def test_layers_come_as_pairs():
    coarse = torch.randn(1, 2, 12, 8, generator=torch.Generator().manual_seed(5))
    layers = [(Q, Q), (coarse, coarse)]
    assert nk.refine(SCORES, attention=layers, grids=[GRID, (3, 4)], window=3).shape == (1, 4, *GRID)


@pytest.mark.parametrize("method", ["nerve", "cliper"])
def test_what_was_captured_of_a_model_is_taken_with_its_grids_and_scales(method):
    layer = CapturedLayer("block", Q, Q, GRID, scale=0.7)
    wide = torch.rand(1, 4, 13, 17, generator=torch.Generator().manual_seed(7))
    captured = nk.refine(wide, attention=CapturedAttention([layer]), method=method)
    by_hand = nk.refine(wide, attention=(Q, Q), method=method, grid=GRID, scale=0.7)
    torch.testing.assert_close(captured, by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", INPUTS)
def test_scores_keep_their_dtype(method, dtype):
    refined = nk.refine(SCORES.to(dtype), image=IMAGE, method=method, **INPUTS[method])
    assert refined.dtype == dtype
    exact = nk.refine(SCORES, image=IMAGE, method=method, **INPUTS[method])
    assert (refined - exact).abs().max() < (1e-5 if dtype == torch.float64 else 0.03)


def test_scores_that_cover_the_same_picture_stretched_are_taken_where_it_is_said():
    q = torch.randn(1, 2, 36, 8, generator=torch.Generator().manual_seed(6))
    wide = torch.rand(1, 3, 20, 60)
    scores = torch.rand(1, 4, 6, 6)
    with pytest.raises(ValueError, match="scores: expected the aspect"):
        nk.refine(scores, image=wide, attention=(q, q), window=3)
    assert nk.refine(scores, image=wide, attention=(q, q), window=3, stretch=True).shape == (1, 4, 20, 60)


def test_what_does_not_fit_is_refused_with_its_bytes():
    with pytest.raises(MemoryError, match=r"mask: expected a problem that fits into the [\d,]+ MiB free on cpu, got"):
        memory.refuse_beyond_memory("mask", 2**60, torch.device("cpu"), "give fewer pixels")
    memory.refuse_beyond_memory("mask", 1, torch.device("cpu"), "")
