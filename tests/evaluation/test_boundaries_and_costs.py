"""Boundary IoU against masks eroded one by one, what variants cost, and both on disk and in the report."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from tests.evaluation.small_datasets import Few

from nerve_kernels._peak_memory import PeakMemory, can_measure, highest_resident_bytes
from nerve_kernels.evaluation.metrics import boundary_iou, boundary_matrix
from nerve_kernels.evaluation.report import write_report
from nerve_kernels.evaluation.runner import evaluate
from nerve_kernels.evaluation.scorer import MEASURED_IMAGES, Cost, Scorer
from nerve_kernels.segmentation.phases import phase, recording_phases

MEBIBYTE = 2**20
linux = pytest.mark.skipif(not can_measure("cpu"), reason="no /proc/self/clear_refs on this system")


def blobs(seed: int, height: int, width: int, classes: int) -> np.ndarray:
    """Rectangles of random classes over each other."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.int64)
    for _ in range(8):
        top, left = random.integers(0, height), random.integers(0, width)
        labels[top : top + height // 3, left : left + width // 3] = random.integers(0, classes)
    return labels


def by_erosion(prediction: np.ndarray, truth: np.ndarray, label: int) -> float:
    """|G_d ∩ P_d| / |G_d ∪ P_d| of one class, a mask less its erosion by a square."""
    distance = max(1, round(0.02 * math.hypot(*truth.shape)))
    square = np.ones((2 * distance + 1,) * 2, dtype=bool)
    valid = truth != 255
    near = [mask & ~binary_erosion(mask, square) & valid for mask in (prediction == label, truth == label)]
    return float((near[0] & near[1]).sum() / (near[0] | near[1]).sum())


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("size", [(60, 90), (200, 31)])
def test_boundary_iou_is_that_of_eroded_masks(size, ignored):
    prediction, truth = blobs(0, *size, 3), blobs(1, *size, 3)
    if ignored:
        truth[10:14] = 255
    found = boundary_iou(boundary_matrix(prediction, truth, classes=3), ["a", "b", "c"])
    assert found == pytest.approx({name: by_erosion(prediction, truth, at) for at, name in enumerate("abc")}, rel=1e-12)


def test_a_class_that_is_nowhere_has_no_boundary_iou():
    labels = blobs(2, 40, 40, 2)
    assert boundary_iou(boundary_matrix(labels, labels, classes=3), ["a", "b", "c"]) == {"a": 1.0, "b": 1.0}


@pytest.fixture
def variants(pipeline):
    base = pipeline.config
    return {"method": base, "pamr": base.replace(refine_pixels="pamr"), "clip": base.replace(walk=False)}


def boundary_scorer(pipeline, variants, count=2) -> Scorer:
    return Scorer(pipeline, Few(count), variants, vocabulary="image", boundary=True)


def test_boundaries_are_kept_on_disk_and_resumed(pipeline, variants, tmp_path):
    whole = evaluate(boundary_scorer(pipeline, variants), tmp_path)
    again = evaluate(boundary_scorer(pipeline, variants), tmp_path)
    assert (again.resumed, again.costs) == (2, {})
    assert again.boundaries == whole.boundaries
    dataset = Few(2)
    one = boundary_scorer(pipeline, variants)
    counts = sum(
        boundary_matrix(one.label_map(dataset[at], "clip"), dataset[at].mask, classes=len(dataset.classes))
        for at in range(2)
    )
    assert whole.boundaries["clip"] == boundary_iou(counts, dataset.classes)
    assert whole.boundaries["clip"] != whole.boundaries["method"]


def test_a_run_without_boundaries_is_another_run(pipeline, tmp_path):
    variants = {"method": pipeline.config}
    evaluate(boundary_scorer(pipeline, variants, 1), tmp_path)
    with pytest.raises(ValueError, match=r"holds a run with boundary = True"):
        evaluate(Scorer(pipeline, Few(1), variants, vocabulary="image"), tmp_path)


def test_a_record_whose_boundaries_are_missing_is_damage(pipeline, tmp_path):
    evaluate(boundary_scorer(pipeline, {"method": pipeline.config}, 1), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    shard.write_text(json.dumps([row[:3] for row in json.loads(shard.read_text())["rows"]]))
    with pytest.raises(ValueError, match=r"is damaged \(0 counts near boundaries, expected 1\)"):
        evaluate(boundary_scorer(pipeline, {"method": pipeline.config}, 1), tmp_path)


def test_variants_are_measured_from_the_seeds_on(pipeline, variants, tmp_path):
    scorer = boundary_scorer(pipeline, variants)
    found = evaluate(scorer, tmp_path)
    assert {name: len(measured) for name, measured in scorer.costs.items()} == dict.fromkeys(variants, 2)
    assert all(cost.seconds > 0 for cost in found.costs.values())
    result = write_report(tmp_path, scorer, found)
    assert set(result["last_run"]["after_seeds_and_affinity"]) == set(variants)
    header = "| | mIoU (%) | pixel accuracy (%) | boundary IoU (%) | ms |"
    assert header in (tmp_path / "report.md").read_text()


@linux
def test_refining_at_the_pixels_takes_more_memory_than_not(pipeline, variants, tmp_path):
    costs = evaluate(boundary_scorer(pipeline, variants, 1), tmp_path).costs
    assert costs["pamr"].peak_bytes > costs["clip"].peak_bytes  # 48 neighbours of each pixel beside its labels


def test_only_the_first_images_are_measured(pipeline, variants, tmp_path):
    scorer = boundary_scorer(pipeline, variants, 1)
    scorer.costs["pamr"] = [Cost(1.0, None)] * MEASURED_IMAGES
    assert evaluate(scorer, tmp_path).costs["pamr"] == Cost(1.0, None)


@linux
def test_memory_of_a_phase_and_of_the_process_afterwards():
    before = highest_resident_bytes()
    assert before is not None
    with recording_phases("cpu") as phases:
        with phase("large"):
            torch.ones(96 * MEBIBYTE, dtype=torch.uint8)
        with phase("small"):
            pass
    large, small = phases
    assert large.peak_bytes is not None
    assert small.peak_bytes is not None
    assert 90 * MEBIBYTE <= large.peak_bytes <= 110 * MEBIBYTE
    assert small.peak_bytes <= 8 * MEBIBYTE
    # resetting the system's mark loses nothing
    assert highest_resident_bytes() >= before


@linux
def test_memory_is_measured_where_the_block_fails():
    peak = PeakMemory()
    with pytest.raises(RuntimeError, match="half way"), peak:
        raise RuntimeError("half way")
    assert peak.bytes is not None
