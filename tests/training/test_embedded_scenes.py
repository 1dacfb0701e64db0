"""The evaluation scenes that ship, and the metric, against values worked out by hand."""

from collections import Counter
from importlib import resources

import numpy as np
import pytest
import torch
from training.world import scenes as building
from training.world.vocabulary import NOUN_LIST

from nerve_kernels.evaluation import EmbeddedScenes, MeanIoU
from nerve_kernels.evaluation.embedded import _manifest

FOLDER = resources.files("nerve_kernels.evaluation").joinpath("embedded_scenes")


def test_splits_have_the_promised_scenes():
    validation, test = (Counter(scene.style for scene in EmbeddedScenes(split)) for split in ("validation", "test"))
    assert validation == {"noto": 100}
    assert test == {"noto": 100, "fluent": 100}


def test_every_mask_holds_exactly_the_named_objects():
    for split in ("validation", "test"):
        dataset = EmbeddedScenes(split)
        for scene in dataset:
            assert scene.image.size == (128, 128)
            assert scene.image.mode == "RGB"
            assert scene.mask.dtype == np.uint8
            counts = np.bincount(scene.mask.ravel(), minlength=len(dataset.classes))
            there = {dataset.classes[i] for i in np.flatnonzero(counts) if i}
            assert there == set(scene.names)
            assert 2 <= len(scene.names) <= 5
            assert all(counts[dataset.classes.index(name)] >= 150 for name in scene.names)


def test_manifest_and_folder_agree():
    with resources.as_file(FOLDER) as folder:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert sum((folder / name).stat().st_size for name in files) <= 5_000_000
    named = [entry[kind] for entry in _manifest()["scenes"] for kind in ("image", "mask")]
    assert len(named) == len(set(named)) == 600
    assert files == {"scenes.json", *named}


def test_manifest_is_what_the_training_code_would_write():
    assert _manifest()["classes"] == ["background", *NOUN_LIST]
    seeds = {(entry["split"], entry["style"], entry["seed"]) for entry in _manifest()["scenes"]}
    assert seeds == {
        (split, style, first + index) for split, style, count, first in building.SPLITS for index in range(count)
    }


def test_only_redistributable_artwork_ships_and_it_is_credited():
    licences = _manifest()["licences"]
    assert {entry["style"]: entry["licence"] for entry in licences["artwork"]} == {
        "noto": "Apache-2.0",
        "fluent": "MIT",
    }
    assert all(entry["licence"] and entry["credit"] for entry in licences["photographs"])


def test_one_style_can_be_asked_for():
    assert len(EmbeddedScenes("test", style="fluent")) == 100
    with pytest.raises(ValueError, match="style: expected 'noto', got 'fluent'; the split 'validation' has no other"):
        EmbeddedScenes("validation", style="fluent")


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split: expected 'validation' or 'test', got 'train'"):
        EmbeddedScenes("train")


def test_no_picture_is_in_two_splits():
    images = [scene.image.tobytes() for split in ("validation", "test") for scene in EmbeddedScenes(split)]
    assert len(set(images)) == 300


def test_mean_iou_by_hand():
    metric = MeanIoU(["background", "cat", "dog", "car"])
    # background: 2 right of 4 in the union; cat: 2 of 3; dog: 1 of 2; a car is nowhere.
    metric.update(torch.tensor([[0, 0, 1], [1, 2, 0]]), torch.tensor([[0, 0, 1], [1, 2, 2]]))
    metric.update(np.asarray([1]), np.asarray([0], dtype=np.uint8))
    score = metric.compute()
    assert score.per_class == pytest.approx({"background": 2 / 4, "cat": 2 / 3, "dog": 1 / 2})
    assert score.miou == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)
    assert score.pixel_accuracy == pytest.approx(5 / 7)


def test_ignored_pixels_and_reset():
    metric = MeanIoU(["a", "b"])
    metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 255, 1]))
    assert metric.compute().miou == 1
    metric.reset()
    with pytest.raises(ValueError, match="no pixel was counted yet"):
        metric.compute()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="classes: expected at least 2, got 1"):
        MeanIoU(["a"])
    with pytest.raises(ValueError, match=r"expected one shape, got \(2,\) and \(3,\)"):
        MeanIoU(["a", "b"]).update(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
