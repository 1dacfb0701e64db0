import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nerve_kernels.segmentation.seeds import label_similarity, resize_seeds, seeds_from_similarity

sizes = st.integers(1, 9)


def test_the_best_synonym_counts():
    patches = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    similarity = label_similarity(patches, texts, [0, 1, 0])
    by_name = patches @ texts.T
    torch.testing.assert_close(similarity[:, 0], torch.maximum(by_name[:, 0], by_name[:, 2]))
    torch.testing.assert_close(similarity[:, 1], by_name[:, 1])


def test_mismatched_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"patches, texts: expected \(N, D\) and \(names, D\), got"):
        label_similarity(torch.ones(2, 3), torch.ones(2, 4), [0, 1])
    with pytest.raises(ValueError, match="label_of_name: expected one entry for each of the 2 rows of texts, got 1"):
        label_similarity(torch.ones(2, 3), torch.ones(2, 3), [0])


@given(rows=sizes, labels=sizes, scale=st.floats(0.1, 200), mode=st.sampled_from(["cosine", "cross_attention"]))
def test_rows_sum_to_one(rows, labels, scale, mode):
    similarity = torch.rand(rows, labels, generator=torch.Generator().manual_seed(rows)) * 2 - 1
    seeds = seeds_from_similarity(similarity, mode=mode, scale=scale)
    assert seeds.min() >= 0
    torch.testing.assert_close(seeds.sum(1), torch.ones(rows))


def test_cosine_is_the_softmax_over_labels():
    similarity = torch.tensor([[0.2, 0.3], [0.1, -0.1]])
    torch.testing.assert_close(seeds_from_similarity(similarity, mode="cosine", scale=7.0), (7 * similarity).softmax(1))


def test_cross_attention_is_the_softmax_over_patches_normalised_over_labels():
    similarity = torch.tensor([[0.2, 0.3, 0.0], [0.1, -0.1, 0.4], [0.5, 0.2, 0.1]])
    attention = (7 * similarity).softmax(0)
    wanted = attention / attention.sum(1, keepdim=True)
    torch.testing.assert_close(seeds_from_similarity(similarity, mode="cross_attention", scale=7.0), wanted)


def test_cross_attention_survives_patches_that_no_label_looks_at():
    similarity = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    seeds = seeds_from_similarity(similarity, mode="cross_attention", scale=200.0)
    torch.testing.assert_close(seeds, torch.full((2, 2), 0.5))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="mode: expected 'cosine' or 'cross_attention', got 'x'"):
        seeds_from_similarity(torch.ones(2, 2), mode="x", scale=1.0)
    with pytest.raises(ValueError, match="scale: expected a number > 0, got 0"):
        seeds_from_similarity(torch.ones(2, 2), mode="cosine", scale=0)
    with pytest.raises(ValueError, match=r"similarity: expected shape \(N, C\), got"):
        seeds_from_similarity(torch.ones(2), mode="cosine", scale=1.0)
    with pytest.raises(ValueError, match=r"seeds: expected \(6, C\) .*, got \(5, 2\)"):
        resize_seeds(torch.ones(5, 2), (2, 3), (4, 4))


@given(height=sizes, width=sizes, new_height=sizes, new_width=sizes)
def test_resized_rows_sum_to_one(height, width, new_height, new_width):
    seeds = torch.rand(height * width, 3, generator=torch.Generator().manual_seed(5)).softmax(1)
    resized = resize_seeds(seeds, (height, width), (new_height, new_width))
    assert resized.shape == (new_height * new_width, 3)
    torch.testing.assert_close(resized.sum(1), torch.ones(len(resized)))
    assert resized.max() <= seeds.max() + 1e-6


def test_resizing_keeps_places():
    seeds = torch.zeros(6, 2)
    seeds[:, 0] = 1
    seeds[5] = torch.tensor([0.0, 1.0])  # lower right of a 2 x 3 grid
    resized = resize_seeds(seeds, (2, 3), (4, 6)).reshape(4, 6, 2)
    assert resized[3, 5, 1] == 1
    assert resized[0, 0, 1] == 0
    assert resized[3, 0, 1] == 0
