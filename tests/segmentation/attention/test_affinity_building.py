"""What is kept of an image's affinities, and that nothing else is computed again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import nerve_kernels as nk
from nerve_kernels.segmentation import ImageFeatures, NerveConfig
from nerve_kernels.segmentation.attention import affinity_building
from nerve_kernels.segmentation.attention.affinity_building import AffinityBuilder, check_affinity_settings

LABELS = "cat, dog|puppy, grass"
OPERATIONS = (
    "attention_statistics", "attention_entropy", "attention_marginal", "head_weights", "local_affinity",
    "global_affinity",
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operations of stages 1 and 2, as they are called."""
    seen: list[str] = []

    def watched(name: str) -> Callable[..., object]:
        real = getattr(nk, name)

        def call(*arguments: object, **options: object) -> object:
            seen.append(name)
            return real(*arguments, **options)

        return call

    for name in OPERATIONS:
        monkeypatch.setattr(nk, name, watched(name))
    return seen


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"beta": 0.9}, []),
        ({"beta": 0.0}, []),
        ({"beta": 1.0}, []),
        ({"alpha": 0.2}, []),
        ({"steps": 2}, []),
        ({"tolerance": 0.05}, []),
        ({"limit_walk": True}, []),
        ({"window": 5}, ["attention_statistics"]),
        ({"cells": 2}, ["attention_statistics"]),
        ({"cells": 2, "beta": 0.0}, []),
        ({"window": 5, "beta": 1.0}, []),
        ({"temperature": 2.0}, ["head_weights"]),
        ({"keep": 2, "beta": 0.0}, ["head_weights"]),
        ({"criterion": "information", "beta": 1.0}, ["attention_marginal", "head_weights"]),
        ({"criterion": "cell_information", "beta": 1.0}, ["head_weights"]),
        ({"criterion": "cell_information", "cells": 2}, ["attention_statistics", "head_weights"]),
    ],
    ids=str,
)
def test_only_what_a_setting_changes_is_computed_again(pipeline, wide_image, calls, change, computed):
    features = pipeline.encode(wide_image)
    pipeline.segment(features, LABELS)
    calls.clear()
    config = pipeline.config.replace(**change)
    found = pipeline.segment(features, LABELS, config=config)
    assert list(dict.fromkeys(calls)) == computed  # some once for each layer
    once = len(calls)
    again = pipeline.segment(features, LABELS, config=config)
    assert len(calls) == once
    fresh = pipeline(wide_image, LABELS, **change)
    assert torch.equal(found.token_probabilities, fresh.token_probabilities)
    assert torch.equal(again.token_probabilities, fresh.token_probabilities)


def test_backends_are_kept_apart(pipeline, wide_image, calls):
    builder = pipeline.encode(wide_image).builder
    for backend in ("eager", None, "eager", None):
        builder.build(pipeline.config.replace(backend=backend))
    assert calls.count("attention_statistics") == 2  # what was built from the first ones is kept


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"window": 5}, ["local_affinity"]),
        ({"cells": 2}, ["global_affinity"]),
        ({"temperature": 2.0}, ["head_weights", "global_affinity", "local_affinity"]),
        ({"keep": 2, "beta": 0.0}, ["head_weights", "local_affinity"]),
        ({"criterion": "information", "beta": 1.0}, ["attention_marginal", "head_weights", "global_affinity"]),
        ({"criterion": "cell_information", "beta": 0.0}, ["attention_statistics", "head_weights", "local_affinity"]),
    ],
    ids=str,
)
def test_without_room_for_every_head_each_affinity_is_a_pass(
    pipeline, wide_image, calls, monkeypatch, change, computed
):
    kept = pipeline(wide_image, LABELS)
    monkeypatch.setenv("NERVE_KERNELS_STATISTICS_MEMORY", "0")
    calls.clear()
    features = pipeline.encode(wide_image)
    without = pipeline.segment(features, LABELS)
    assert "attention_statistics" not in calls
    assert torch.allclose(without.token_probabilities, kept.token_probabilities, atol=1e-5)
    calls.clear()
    pipeline.segment(features, LABELS, config=pipeline.config.replace(**change))
    assert list(dict.fromkeys(calls)) == computed


def test_what_was_asked_before_changes_no_bit_where_only_some_settings_fit(pipeline, wide_image, monkeypatch):
    """The two ways differ in the last bits: weights of one are not taken for those of the other."""
    few, many = (pipeline.config.replace(window=window, temperature=0.5) for window in (3, 7))
    monkeypatch.setattr(affinity_building, "statistics_memory", lambda: 0)
    alone = pipeline.segment(pipeline.encode(wide_image), LABELS, config=many).token_probabilities
    features = pipeline.encode(wide_image)
    monkeypatch.setattr(AffinityBuilder, "_statistics_fit", lambda self, config: config.window == few.window)
    pipeline.segment(features, LABELS, config=few)
    assert torch.equal(pipeline.segment(features, LABELS, config=many).token_probabilities, alone)


def test_a_memory_that_is_no_number_is_refused(pipeline, wide_image, monkeypatch):
    monkeypatch.setenv("NERVE_KERNELS_STATISTICS_MEMORY", "lots")
    with pytest.raises(ValueError, match="NERVE_KERNELS_STATISTICS_MEMORY: expected MiB"):
        pipeline(wide_image, LABELS)


def test_only_the_latest_parts_are_kept(pipeline, wide_image, calls):
    builder = pipeline.encode(wide_image).builder
    temperatures = [0.1 * number for number in range(2, affinity_building.MAX_KEPT + 2)]
    for temperature in temperatures:
        builder.build(pipeline.config.replace(temperature=temperature, beta=0.0))
    calls.clear()
    builder.build(pipeline.config.replace(temperature=temperatures[-1], beta=0.0))
    assert calls == []
    builder.build(pipeline.config.replace(temperature=pipeline.config.temperature, beta=0.0))
    assert calls == ["head_weights"]


def test_what_was_let_go_of_is_saved_all_the_same(pipeline, wide_image, tmp_path):
    features = pipeline.encode(wide_image)
    configs = [pipeline.config.replace(beta=0.01 * number, keep=1 + number % 6) for number in range(1, 15)]
    configs += [pipeline.config.replace(temperature=0.1 * number) for number in range(2, 12)]
    wanted = [pipeline.segment(features, LABELS, config=config).token_probabilities for config in configs]
    loaded = ImageFeatures.load(features.save(tmp_path / "many.safetensors"))
    for config, expected in zip(configs, wanted, strict=True):
        assert torch.equal(pipeline.segment(loaded, LABELS, config=config).token_probabilities, expected)


def test_no_layers_is_refused():
    with pytest.raises(ValueError, match="layers: expected the queries and keys of at least one layer, got none"):
        AffinityBuilder([])


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"window": 15, "cells": 4, "keep": 6}, None),
        ({"window": (15, 15), "cells": (4, 4)}, None),
        ({"window": 17}, "window: expected at most 15 on a grid of 8 tokens a side, got 17"),
        ({"window": (3, 17)}, "window: expected at most 15 on a grid of 8 tokens a side, got 17"),
        ({"cells": 5}, "cells: expected at most 4, the side of the coarsest chosen layer's grid, got 5"),
        ({"cells": (1, 5)}, "cells: expected at most 4, the side of the coarsest chosen layer's grid, got 5"),
        ({"keep": 7}, "keep: expected at most the 6 attention maps of the chosen layers and timesteps, got 7"),
        ({"cells": None}, None),
    ],
)
def test_windows_are_judged_on_the_finest_grid_and_cells_on_the_coarsest(settings, refused):
    config = NerveConfig(**{"window": 3, "cells": 2, **settings})
    for sides in ([4, 8], [8, 4]):
        if refused is None:
            check_affinity_settings(config, maps=6, sides=sides)
        else:
            with pytest.raises(ValueError, match=refused):
                check_affinity_settings(config, maps=6, sides=sides)


@pytest.mark.parametrize("criterion", ["entropy", "cell_information"])
def test_a_sharper_global_affinity_is_the_same_either_way(pipeline, wide_image, monkeypatch, criterion):
    config = pipeline.config.replace(global_sharpness=3.0, beta=1.0, criterion=criterion)
    at_once = pipeline.encode(wide_image, config=config).affinity(config)
    monkeypatch.setenv("NERVE_KERNELS_STATISTICS_MEMORY", "0")
    by_passes = pipeline.encode(wide_image, config=config).affinity(config)
    assert torch.allclose(at_once.u, by_passes.u, atol=1e-5)
    plain = config.replace(global_sharpness=1.0)
    assert not torch.allclose(pipeline.encode(wide_image, config=plain).affinity(plain).u, by_passes.u, atol=1e-3)
