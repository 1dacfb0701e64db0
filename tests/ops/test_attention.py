"""Stage 1 against the reference, over dtypes, head sizes and odd sizes, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels._operators.attention import score_blocks

SHAPES = [(1, 1, 1, 1, 1), (1, 2, 5, 7, 3), (2, 3, 77, 77, 40), (1, 2, 130, 65, 80)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}


@pytest.fixture(params=[None, 100], ids=["one block", "many blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with blocks so small that rows are split with a remainder, too."""
    if request.param is not None:
        monkeypatch.setattr(score_blocks, "CPU_BLOCK_ELEMENTS", request.param)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("block_size")
def test_every_function_of_stage_one_agrees_with_the_reference(shape, dtype):
    q, k = queries_and_keys(0, *shape, dtype)
    w = random_weights(1, shape[0], shape[1], dtype)
    entropy, lse = nk.attention_entropy(q, k, return_lse=True)
    expected_entropy, expected_lse = reference.attention_entropy(q, k, return_lse=True)
    assert entropy.dtype == dtype
    assert (entropy - expected_entropy).abs().max() < TOLERANCE[dtype]
    assert (lse - expected_lse).abs().max() < TOLERANCE[dtype]
    for result, expected in [
        (nk.attention_marginal(q, k), reference.attention_marginal(q, k)),
        (nk.attention_marginal(q, k, lse=lse), reference.attention_marginal(q, k)),
        (nk.fuse_attention(q, k, w), reference.fuse_attention(q, k, w)),
        (nk.fuse_attention(q, k, w, lse=lse), reference.fuse_attention(q, k, w)),
    ]:
        assert relative_error(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_inputs_are_computed_in_float32(dtype):
    q, k = queries_and_keys(2, 2, 3, 50, 33, 40, dtype)
    w = random_weights(3, 2, 3)
    entropy = nk.attention_entropy(q, k)
    # the inputs are exact in float32, so nothing is lost but float32 rounding
    assert entropy.dtype == torch.float32
    assert (entropy - reference.attention_entropy(q, k)).abs().max() < 5e-6
    fused = nk.fuse_attention(q, k, w)
    assert fused.dtype == dtype
    plain = torch.einsum("bh,bhij->bij", w.to(dtype), (q @ k.transpose(-1, -2) * 40**-0.5).softmax(-1))
    expected = reference.fuse_attention(q, k, w)
    assert relative_error(fused, expected) <= 2 * relative_error(plain, expected)


def test_scale_is_used_and_defaults_to_the_inverse_root_of_the_head_size():
    q, k = queries_and_keys(4, 1, 2, 9, 9, 16)
    assert torch.equal(nk.attention_entropy(q, k), nk.attention_entropy(q, k, scale=0.25))
    assert nk.attention_entropy(q, k, scale=0.0).sub(math.log(9)).abs().max() < 1e-6
    sharp = reference.attention_entropy(q, k, scale=12.5)
    assert (nk.attention_entropy(q, k, scale=12.5) - sharp).abs().max() < 2e-5


def test_rows_that_are_almost_one_hot_keep_their_small_entropy():
    q, k = queries_and_keys(5, 1, 2, 64, 64, 40)
    scale = 50 * 40**-0.5
    float32_scores = (q * scale) @ k.transpose(-1, -2)
    # an exact softmax on float32 scores: what float32 inputs allow
    exact = torch.special.entr(float32_scores.double().softmax(-1)).sum(-1)
    expected = reference.attention_entropy(q, k, scale=scale)
    entropy = nk.attention_entropy(q, k, scale=scale)
    assert relative_error(entropy, expected) <= 2 * relative_error(exact, expected) + 1e-6
    assert (entropy >= 0).all()


def test_scores_of_ten_thousand_do_not_overflow():
    q = torch.tensor([[[[1e4], [-1e4]]]])
    k = torch.tensor([[[[1.0], [-1.0], [0.0]]]])
    entropy, lse = nk.attention_entropy(q, k, scale=1.0, return_lse=True)
    assert entropy.flatten().tolist() == [0.0, 0.0]
    assert lse.flatten().tolist() == [1e4, 1e4]


def test_a_masked_key_adds_nothing_and_a_nan_stays_in_its_row():
    q = torch.ones(1, 1, 2, 1)
    k = torch.tensor([[[[0.0], [0.0], [-math.inf]]]])
    entropy = nk.attention_entropy(q, k, scale=1.0)
    assert entropy.sub(math.log(2)).abs().max() < 1e-6
    q = torch.tensor([[[[math.nan], [1.0]]]])
    entropy = nk.attention_entropy(q, torch.ones(1, 1, 3, 1))
    assert entropy[0, 0, 0].isnan()
    assert abs(entropy[0, 0, 1].item() - math.log(3)) < 1e-6


def test_one_key_has_no_entropy_and_empty_batches_are_empty():
    q, k = queries_and_keys(6, 1, 2, 4, 1, 8)
    assert nk.attention_entropy(q, k).abs().max() == 0
    empty = torch.zeros(0, 2, 4, 8)
    assert nk.attention_entropy(empty, empty).shape == (0, 2, 4)
    assert nk.attention_marginal(empty, empty).shape == (0, 2, 4)
    assert nk.fuse_attention(empty, empty, torch.zeros(0, 2)).shape == (0, 4, 4)


def test_strides_do_not_matter():
    packed = torch.randn(2, 21, 3, 2, 8, generator=torch.Generator().manual_seed(7))
    q, k = packed[..., 0, :].transpose(1, 2), packed[..., 1, :].transpose(1, 2)
    assert not q.is_contiguous()
    w = random_weights(8, 2, 3)
    contiguous = (q.contiguous(), k.contiguous())
    assert torch.equal(nk.attention_entropy(q, k), nk.attention_entropy(*contiguous))
    assert torch.equal(nk.attention_marginal(q, k), nk.attention_marginal(*contiguous))
    assert torch.equal(nk.fuse_attention(q, k, w), nk.fuse_attention(*contiguous, w))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_explicit_maps_agree_with_the_reference(dtype):
    generator = torch.Generator().manual_seed(9)
    maps = (4 * torch.randn(2, 3, 10, 13, generator=generator)).softmax(-1).to(dtype)
    maps[0, 0, 0] = torch.eye(13)[2].to(dtype)
    w = random_weights(10, 2, 3)
    entropy = nk.attention_map_entropy(maps)
    assert entropy[0, 0, 0] == 0
    assert (entropy - reference.attention_map_entropy(maps)).abs().max() < 1e-5
    fused = nk.fuse_attention_maps(maps, w)
    assert fused.dtype == dtype
    plain = torch.einsum("bh,bhij->bij", w.to(dtype), maps)
    expected = reference.fuse_attention_maps(maps, w)
    assert relative_error(fused, expected) <= max(1e-6, 2 * relative_error(plain, expected))


def test_head_weights_over_layers_agree_with_the_reference():
    sizes = [(3, 30), (2, 12), (1, 1)]
    entropies, marginals = [], []
    for seed, (heads, tokens) in enumerate(sizes):
        q, k = queries_and_keys(seed, 2, heads, tokens, tokens, 8)
        entropies.append(nk.attention_entropy(q, k))
        marginals.append(nk.attention_marginal(q, k))
    keys = [tokens for _, tokens in sizes]
    for options in (
        {},
        {"temperature": 0.02},
        {"keep": 2},
        {"criterion": "information", "marginal": marginals},
        {"criterion": "information", "marginal": marginals, "keep": 4, "temperature": 0.01},
        {"criterion": "uniform"},
        {"criterion": "uniform", "keep": 3, "temperature": 0.01},
    ):
        weights = nk.head_weights(entropies, num_keys=keys, **options)
        expected = reference.head_weights(entropies, num_keys=keys, **options)
        assert [item.shape for item in weights] == [(2, heads) for heads, _ in sizes]
        for item, wanted in zip(weights, expected, strict=True):
            assert (item - wanted).abs().max() < 1e-5  # a small temperature magnifies float32 rounding
        assert (torch.cat(weights, 1).sum(1) - 1).abs().max() < 1e-6
        if "keep" in options:
            assert (torch.cat(weights, 1) > 0).sum(1).tolist() == [options["keep"]] * 2


def test_head_weights_prefer_sharp_heads_and_information_sees_through_sinks():
    tokens = 16
    eye, uniform = torch.eye(tokens), torch.full((tokens, tokens), 1 / tokens)
    sink = torch.zeros(tokens, tokens)
    sink[:, 3] = 1
    maps = torch.stack([uniform, sink, 0.5 * eye + 0.5 * uniform]).unsqueeze(0)
    entropy = nk.attention_map_entropy(maps)
    by_entropy = nk.head_weights(entropy, num_keys=tokens)
    assert by_entropy.argmax() == 1, "entropy alone mistakes the sink for the sharpest head"
    by_information = nk.head_weights(entropy, num_keys=tokens, criterion="information", marginal=maps.mean(2))
    assert by_information.argmax() == 2
    assert abs(by_information[0, 0] - by_information[0, 1]) < 1e-6, "sink and uniform head both say nothing"


def test_a_single_key_gives_uniform_weights_and_ties_keep_the_first_heads():
    entropy = torch.zeros(1, 4, 5)
    assert nk.head_weights(entropy, num_keys=1).tolist() == [[0.25] * 4]
    assert nk.head_weights(entropy, num_keys=8, keep=2).tolist() == [[0.5, 0.5, 0, 0]]


def test_uniform_weights_are_equal_whatever_the_rows_and_keep_the_first_heads():
    entropies = [torch.tensor([[[0.1], [3.0]]]), torch.tensor([[[2.0], [0.5], [1.0]]])]
    weights = nk.head_weights(entropies, num_keys=[1, 64], criterion="uniform", temperature=1e-30)
    assert [item.tolist() for item in weights] == [[[pytest.approx(0.2)] * 2], [[pytest.approx(0.2)] * 3]]
    kept = nk.head_weights(entropies, num_keys=[1, 64], criterion="uniform", keep=4)
    assert [item.tolist() for item in kept] == [[[0.25, 0.25]], [[0.25, 0.25, 0]]]


def test_the_reference_keeps_the_heads_that_a_ranking_by_hand_keeps():
    """Of the scores −1, −2, −1, −0.5, −2 (times 1/log 8) the best three are the fourth, the first and the third."""
    entropy = torch.tensor([[[1.0], [2.0], [1.0], [0.5], [2.0]]])
    for keep, kept in [(1, {3}), (2, {3, 0}), (3, {3, 0, 2}), (4, {3, 0, 2, 1}), (5, {0, 1, 2, 3, 4})]:
        weights = reference.head_weights(entropy, num_keys=8, temperature=1.0, keep=keep)
        assert set(weights[0].nonzero().flatten().tolist()) == kept
        scores = (-entropy[0, sorted(kept), 0].double() / math.log(8)).exp()
        assert torch.allclose(weights[0, sorted(kept)], scores / scores.sum())
