import numpy as np
import pytest
import torch
from PIL import Image

import nerve_kernels as nk
from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.attention.affinity_building import AffinityBuilder
from nerve_kernels.segmentation.seeds import resize_seeds

LABELS = "cat, dog|puppy, grass"


def test_an_image_that_is_not_square(pipeline, wide_image):
    result = pipeline(wide_image, LABELS)
    assert result.labels == ("cat", "dog", "grass")
    assert result.label_map.shape == (60, 90)
    assert result.label_map.dtype == torch.int64
    assert result.token_probabilities.shape == (3, 12, 18)
    assert result.probabilities.shape == (3, 60, 90)
    torch.testing.assert_close(result.probabilities.sum(0), torch.ones(60, 90))
    assert torch.equal(result.label_map, result.probabilities.argmax(0))
    assert not result.probabilities.requires_grad


def test_the_same_call_gives_the_same_bits(pipeline, wide_image):
    one, other = pipeline(wide_image, LABELS), pipeline(wide_image, LABELS)
    assert torch.equal(one.token_probabilities, other.token_probabilities)
    different = pipeline(wide_image, LABELS, noise_seed=1)
    assert not torch.equal(one.token_probabilities, different.token_probabilities)


def test_paths_arrays_and_images_are_the_same(pipeline, wide_image, tmp_path):
    wide_image.save(tmp_path / "x.png")
    results = [pipeline(x, LABELS) for x in (wide_image, np.asarray(wide_image), tmp_path / "x.png")]
    for result in results[1:]:
        assert torch.equal(result.token_probabilities, results[0].token_probabilities)


def test_the_result_is_the_method_written_out(pipeline, wide_image):
    """Stage by stage with the dense float64 reference in place of the structured operations."""
    config = pipeline.config.replace(layers=("latent/1",), window=3, cells=6, beta=0.4)
    features = pipeline.encode(wide_image, config=config)
    result = pipeline.segment(features, LABELS)
    q = torch.cat([layer.q for layer in features.layers], dim=1).double()
    k = torch.cat([layer.k for layer in features.layers], dim=1).double()
    maps = nk.reference.attention(q, k)
    entropy = torch.special.entr(maps).sum(-1).mean(-1)
    weights = (-entropy / (config.temperature * np.log(maps.shape[-1]))).softmax(-1)
    fused = (weights[..., None, None] * maps).sum(1)
    local = nk.LocalAffinity.from_dense(fused, grid=features.grid, window=3).to_dense()
    coarse = nk.LowRankAffinity.from_dense(fused, grid=features.grid, cells=6).to_dense()
    mixed = 0.4 * coarse[0].double() + 0.6 * local[0].double()
    seeds = resize_seeds(pipeline_seeds(pipeline, features), features.patches.grid, features.grid).double()
    probabilities = seeds
    for _ in range(config.steps):
        probabilities = (1 - config.alpha) * seeds + config.alpha * mixed @ probabilities
    wanted = (probabilities / probabilities.sum(1, keepdim=True)).T.reshape(3, *features.grid)
    torch.testing.assert_close(result.token_probabilities.double(), wanted, atol=1e-5, rtol=1e-4)


def pipeline_seeds(pipeline: NervePipeline, features) -> torch.Tensor:
    """The seeds are what is left when the walk is off."""
    result = pipeline.segment(features, LABELS, config=features.config.replace(walk=False))
    return result.token_probabilities.flatten(1).T


def test_without_the_walk_stable_diffusion_is_not_run(pipeline, wide_image, monkeypatch):
    with_features = pipeline_seeds(pipeline, pipeline.encode(wide_image))
    monkeypatch.setattr(pipeline, "attention", None)
    result = pipeline(wide_image, LABELS, walk=False)
    assert result.token_probabilities.shape == (3, 4, 6)  # CLIP's own grid
    torch.testing.assert_close(result.token_probabilities.flatten(1).T, with_features)


def test_one_encoding_serves_an_ablation(pipeline, wide_image, monkeypatch):
    features = pipeline.encode(wide_image)
    monkeypatch.setattr(pipeline, "attention", None)
    calls: list[int] = []
    real = nk.attention_entropy
    monkeypatch.setattr(nk, "attention_entropy", lambda *a, **o: calls.append(1) or real(*a, **o))
    changes = [
        {"walk": False},
        {"criterion": "uniform"},
        {"criterion": "entropy"},
        {"criterion": "information"},
        {"beta": 0.0},
        {"beta": 1.0},
        {"keep": 2},
        {"alpha": 0.3, "tolerance": 0.01},
        {"seed_mode": "cross_attention"},
        {"templates": "short"},
        {"background_words": ("sky",)},
    ]
    results = [pipeline.segment(features, LABELS, config=pipeline.config.replace(**change)) for change in changes]
    assert calls == []  # entropies are computed once, when the image is encoded
    distinct = {tuple(result.token_probabilities.flatten().tolist()) for result in results}
    assert len(distinct) == len(changes)


def test_features_can_let_go_of_queries_and_keys(pipeline, wide_image):
    features = pipeline.encode(wide_image)
    light = features.without_layers()
    assert light.layers == ()
    assert torch.equal(pipeline.segment(light, LABELS).label_map, pipeline.segment(features, LABELS).label_map)
    with pytest.raises(ValueError, match="features: they hold no queries and keys"):
        pipeline.segment(light, LABELS, config=pipeline.config.replace(beta=0.1))


@pytest.mark.parametrize("change", [{"timesteps": (5,)}, {"clip_size": 64}, {"layers": ("*",)}, {"noise_seed": 9}])
def test_features_made_otherwise_are_refused(pipeline, wide_image, change):
    features = pipeline.encode(wide_image)
    with pytest.raises(ValueError, match=rf"config: {next(iter(change))} is .* encode the image again"):
        pipeline.segment(features, LABELS, config=pipeline.config.replace(**change))


def test_features_encoded_without_the_walk_cannot_walk(pipeline, wide_image):
    features = pipeline.encode(wide_image, config=pipeline.config.replace(walk=False))
    with pytest.raises(ValueError, match="encode the image again with walk=True"):
        pipeline.segment(features, LABELS, config=pipeline.config)


def test_several_layers_and_timesteps_share_one_grid(pipeline, wide_image):
    config = pipeline.config.replace(layers=("latent/1", "mid_block"), timesteps=(10, 400), criterion="information")
    features = pipeline.encode(wide_image, config=config)
    assert len(features.layers) == 2 * (3 + 1)
    assert features.grid == (12, 18)
    weights = features.builder.weights(config)
    assert float(sum(weight.sum() for weight in weights)) == pytest.approx(1.0, abs=1e-5)
    result = pipeline.segment(features, LABELS)
    torch.testing.assert_close(result.token_probabilities.sum(0), torch.ones(12, 18))


def test_uniform_weights_are_equal(pipeline, wide_image):
    features = pipeline.encode(wide_image)
    weights = features.builder.weights(pipeline.config.replace(criterion="uniform"))
    assert {round(value, 6) for weight in weights for value in weight.flatten().tolist()} == {round(1 / 6, 6)}
    with pytest.raises(ValueError, match="layers: expected the queries and keys of at least one layer, got none"):
        AffinityBuilder([])


def test_background_words_and_threshold(pipeline, wide_image):
    result = pipeline(wide_image, "cat, dog", background_words=("sky", "wall"))
    assert result.labels == ("background", "cat", "dog")
    assert result.background == 0
    sure = pipeline(wide_image, "cat, dog", background_words=("sky",), probability_threshold=1.0)
    assert (sure.label_map == 0).all()
    unsure = pipeline(wide_image, "cat, dog", probability_threshold=1.0)
    assert (unsure.label_map == -1).all()
    assert unsure.summary()["unlabelled_pixels"] == 60 * 90


def test_a_synonym_can_only_help_its_label(pipeline, wide_image):
    config = pipeline.config.replace(walk=False)
    features = pipeline.encode(wide_image, config=config)
    alone = pipeline.segment(features, "cat, dog").token_probabilities
    helped = pipeline.segment(features, "cat, dog|grass").token_probabilities
    assert (helped[1] >= alone[1] - 1e-6).all()


def test_a_single_label_is_explained(pipeline, wide_image):
    with pytest.raises(ValueError, match=r"labels: got only 'cat', .*background words"):
        pipeline(wide_image, "cat")
    assert pipeline(wide_image, "cat", background_words="default").labels == ("background", "cat")


def test_bad_calls_are_refused_before_any_work(pipeline, wide_image, monkeypatch):
    monkeypatch.setattr(pipeline, "text_image", None)
    with pytest.raises(ValueError, match="labels: label 2 is empty"):
        pipeline(wide_image, "cat,,dog")
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\), got 2"):
        pipeline(wide_image, LABELS, alpha=2.0)
    with pytest.raises(TypeError, match="unknown field 'aplha'; did you mean 'alpha'"):
        pipeline(wide_image, LABELS, aplha=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clip_window": 30, "clip_stride": 8},
            "clip_window: expected a multiple of this model's patch of 8 pixels, got 30; try 32",
        ),
        (
            {"clip_window": 32, "clip_stride": 9},
            "clip_stride: expected a multiple of this model's patch of 8 pixels, got 9",
        ),
        ({"timesteps": (5, 1000)}, "timesteps: expected an int from 0 to 999 for this schedule, got 1000"),
        ({"layers": ("latent/4",)}, "layers: 'latent/4' fits none"),
        ({"layers": (13,)}, "layers: 13 fits none"),
        ({"keep": 7}, "keep: expected at most the 6 attention maps of the chosen layers and timesteps, got 7"),
        ({"window": (3, 25)}, "window: expected at most 23 on a grid of 12 tokens a side, got 25"),
        (
            {"cells": 7, "layers": ("*",)},
            "cells: expected at most 6, the side of the coarsest chosen layer's grid, got 7",
        ),
    ],
)
def test_what_the_models_cannot_follow_is_refused(pipeline, wide_image, change, message):
    with pytest.raises(ValueError, match=message):
        NervePipeline(
            attention=pipeline.attention, text_image=pipeline.text_image, config=pipeline.config.replace(**change)
        )
    with pytest.raises(ValueError, match=message):
        pipeline(wide_image, LABELS, **change)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (17, 31)])
def test_extreme_images(pipeline, size):
    result = pipeline(Image.new("RGB", size, "gray"), LABELS, window=1)
    assert tuple(result.label_map.shape) == (size[1], size[0])


def test_from_pretrained_and_save(diffusion_folder, clip_folder, tiny_config, wide_image, tmp_path):
    made = NervePipeline.from_pretrained(
        diffusion=str(diffusion_folder), clip=clip_folder, device="cpu", dtype="bfloat16", config=tiny_config
    )
    written = made(wide_image, LABELS).save(tmp_path / "out" / "wide")
    assert all(path.stat().st_size > 0 for path in written.values())


def test_the_default_config_runs_on_any_checkpoint(diffusion, clip, wide_image):
    pipeline = NervePipeline(attention=diffusion, text_image=clip)
    assert pipeline.config == NerveConfig()
    small = {"diffusion_size": 48, "clip_size": 64, "clip_window": 32, "clip_stride": 16, "templates": "short"}
    assert pipeline(wide_image, LABELS, **small).labels == ("cat", "dog", "grass")


@pytest.mark.parametrize("size", [(400, 4), (4, 400), (1, 1)])
def test_images_too_narrow_for_the_window_are_segmented_all_the_same(pipeline, size):
    result = pipeline(Image.new("RGB", size, "red"), "cat, dog", window=9, cells=3, beta=0.5)
    assert tuple(result.label_map.shape) == (size[1], size[0])


def test_a_list_of_images_is_answered_as_each_by_itself(pipeline, wide_image):
    images = [
        wide_image,
        wide_image.transpose(Image.Transpose.ROTATE_90),
        wide_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ]
    for config in (
        pipeline.config,
        pipeline.config.replace(clip_window=16, clip_stride=8),
        pipeline.config.replace(walk=False),
    ):
        together = [pipeline.segment(one, LABELS) for one in pipeline.encode_all(images, config=config)]
        for image, found in zip(images, together, strict=True):
            alone = pipeline.segment(pipeline.encode(image, config=config), LABELS)
            assert found.label_map.shape == (image.height, image.width)
            assert (found.label_map == alone.label_map).float().mean() >= 0.999
            torch.testing.assert_close(found.token_probabilities, alone.token_probabilities, atol=1e-4, rtol=1e-3)
    listed = pipeline(images, LABELS)
    assert [one.label_map.shape for one in listed] == [(60, 90), (90, 60), (60, 90)]
    assert pipeline([], LABELS) == []
