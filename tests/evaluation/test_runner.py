"""The runner in one process: exact counts, shared features, resuming, corrupt images, flat memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.small_datasets import Few, scorer_of, voc_of

from nerve_kernels.evaluation import MeanIoU, open_dataset
from nerve_kernels.evaluation.processes import Processes
from nerve_kernels.evaluation.runner import Evaluation, evaluate, spread
from nerve_kernels.evaluation.scorer import Scorer
from nerve_kernels.segmentation import NerveConfig


def counts(evaluation: Evaluation, name: str = "method") -> torch.Tensor:
    return evaluation.confusions[name]


@pytest.mark.parametrize("vocabulary", ["dataset", "image"])
def test_counts_are_those_of_segmenting_by_hand(pipeline, tmp_path, vocabulary):
    dataset = Few(3)
    found = evaluate(scorer_of(pipeline, dataset, vocabulary=vocabulary), tmp_path)
    metric = MeanIoU(dataset.classes)
    for scene in (dataset[index] for index in range(3)):
        present = [name for name in dataset.classes[1:] if dataset.classes.index(name) in scene.mask]
        words = dataset.classes[1:] if vocabulary == "dataset" else present
        result = pipeline(scene.image, ["background", *words])
        index = np.array([dataset.classes.index(name) for name in result.labels])
        metric.update(index[result.label_map.numpy()], scene.mask)
    assert torch.equal(counts(found), metric.confusion.compute())
    assert counts(found).sum() == 3 * 128 * 128
    assert found.scores["method"] == metric.compute()
    assert (found.images, found.resumed, found.failures) == (3, 0, ())
    assert set(found.best).isdisjoint(found.worst)


def test_variants_share_features_and_change_nothing_for_each_other(pipeline, tmp_path):
    base = pipeline.config
    variants = {
        "clip": base.replace(walk=False),
        "method": base,
        "local": base.replace(beta=0.0),
        "noisier": base.replace(timesteps=(300,)),
    }
    runs: list[int] = []
    handle = pipeline.attention.unet.register_forward_pre_hook(lambda *_: runs.append(1))
    together = evaluate(scorer_of(pipeline, Few(2), variants), tmp_path / "together")
    handle.remove()
    assert len(runs) == 2 * 2  # two images, two noise levels; four variants
    for name, config in variants.items():
        alone = evaluate(scorer_of(pipeline, Few(2), {name: config}), tmp_path / name)
        assert torch.equal(counts(alone, name), counts(together, name))
    assert len({tuple(counts(together, name).flatten().tolist()) for name in ("clip", "method", "local")}) == 3


def test_an_interrupted_run_goes_on_from_what_is_finished(pipeline, tmp_path):
    whole = evaluate(scorer_of(pipeline), tmp_path / "whole")
    seen: list[int] = []

    def stop_after_two(index: int, _: str | None) -> None:
        seen.append(index)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(scorer_of(pipeline), tmp_path / "cut", save_every=0, on_image=stop_after_two)
    rest: list[int] = []
    resumed = evaluate(scorer_of(pipeline), tmp_path / "cut", on_image=lambda index, _: rest.append(index))
    assert (resumed.images, resumed.resumed) == (5, 2)
    assert seen + rest == [0, 1, 2, 3, 4]
    assert torch.equal(counts(resumed), counts(whole))
    assert (resumed.best, resumed.worst) == (whole.best, whole.worst)
    again = evaluate(scorer_of(pipeline), tmp_path / "cut")
    assert (again.images, again.resumed, again.images_per_second) == (5, 5, 0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_loses_nothing_that_was_finished(pipeline, tmp_path):
    whole = evaluate(scorer_of(pipeline), tmp_path / "whole")
    child = os.fork()
    if child == 0:  # until it is killed, this copy of the process finishes one image after another
        try:
            torch.set_num_threads(1)
            evaluate(scorer_of(pipeline), tmp_path / "killed", save_every=0, on_image=lambda *_: time.sleep(0.2))
        finally:
            os._exit(0)
    shards = tmp_path / "killed" / "shards"
    while not (shards.is_dir() and any(shards.glob("*.json"))):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    finished = len(list(shards.glob("*.json")))
    assert 1 <= finished < 5
    resumed = evaluate(scorer_of(pipeline), tmp_path / "killed")
    assert (resumed.images, resumed.resumed) == (5, finished)
    assert torch.equal(counts(resumed), counts(whole))


def test_an_image_recorded_twice_counts_once(pipeline, tmp_path):
    whole = evaluate(scorer_of(pipeline), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    shutil.copy(shard, shard.with_name("000000000-copied.json"))
    assert torch.equal(counts(evaluate(scorer_of(pipeline), tmp_path)), counts(whole))


def test_a_larger_limit_uses_what_a_smaller_one_computed(pipeline, tmp_path):
    evaluate(scorer_of(pipeline, Few(4)), tmp_path, limit=2)
    whole = evaluate(scorer_of(pipeline, Few(4)), tmp_path)
    assert (whole.images, whole.resumed) == (4, 2)
    part = evaluate(scorer_of(pipeline, Few(4)), tmp_path, limit=2)
    assert (part.images, part.resumed) == (2, 2)
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        spread(4, 0)


def test_another_run_is_refused_by_what_differs(pipeline, tmp_path):
    evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    other = {"method": pipeline.config.replace(alpha=0.25)}
    with pytest.raises(
        ValueError, match=r"out: .* holds a run with variants\.method\.alpha = 0\.9, this one has 0\.25"
    ):
        evaluate(scorer_of(pipeline, Few(1), other), tmp_path)
    with pytest.raises(ValueError, match="vocabulary = 'image', this one has 'dataset'"):
        evaluate(scorer_of(pipeline, Few(1), vocabulary="dataset"), tmp_path)
    with pytest.raises(ValueError, match="images = "):
        evaluate(scorer_of(pipeline, Few(2)), tmp_path)
    with torch.no_grad():
        weight = pipeline.text_image.model.visual_projection.weight
        before = weight[0, 0].clone()
        weight[0, 0] += 1e-3
        with pytest.raises(ValueError, match=r"models\.text_image = "):
            evaluate(scorer_of(pipeline, Few(1)), tmp_path)
        weight[0, 0] = before
    assert evaluate(scorer_of(pipeline, Few(1)), tmp_path).resumed == 1


def test_a_damaged_shard_is_named(pipeline, tmp_path):
    evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    shard.write_text(shard.read_text()[:-3])
    with pytest.raises(ValueError, match=rf"out: the shard {shard} is damaged"):
        evaluate(scorer_of(pipeline, Few(1)), tmp_path)


def test_corrupt_images_are_counted_and_the_rest_goes_on(pipeline, tmp_path):
    root = voc_of(tmp_path / "voc", 4)
    (root / "JPEGImages/0001.jpg").write_bytes(b"no image")
    (root / "SegmentationClass/0002.png").unlink()
    dataset = open_dataset("voc21", root)
    told: list[str | None] = []
    found = evaluate(
        scorer_of(pipeline, dataset, vocabulary="dataset"),
        tmp_path / "out",
        on_image=lambda _, reason: told.append(reason),
    )
    assert found.images == 2
    assert [name for name, _ in found.failures] == ["0001", "0002"]
    assert "0001.jpg: not an image" in found.failures[0][1]
    assert "0002.png: no such file" in found.failures[1][1]
    assert told == [None, found.failures[0][1], found.failures[1][1], None]
    assert counts(found).sum() == 2 * 16 * 24
    (root / "JPEGImages/0001.jpg").write_bytes((root / "JPEGImages/0000.jpg").read_bytes())
    mended = evaluate(scorer_of(pipeline, dataset, vocabulary="dataset"), tmp_path / "out")
    assert (mended.images, mended.resumed, len(mended.failures)) == (3, 2, 1)


def test_not_a_single_image(pipeline, tmp_path):
    root = voc_of(tmp_path / "voc", 1)
    (root / "JPEGImages/0000.jpg").unlink()
    with pytest.raises(ValueError, match=r"not a single image of Pascal VOC 2012 \(21\) .* the first: .*0000\.jpg"):
        evaluate(scorer_of(pipeline, open_dataset("voc21", root), vocabulary="dataset"), tmp_path / "out")


def test_reading_ahead_changes_nothing(pipeline, tmp_path):
    root = voc_of(tmp_path / "voc", 3)
    (root / "JPEGImages/0001.jpg").unlink()
    dataset = open_dataset("voc20", root)
    alone = evaluate(scorer_of(pipeline, dataset, vocabulary="dataset"), tmp_path / "alone")
    ahead = evaluate(scorer_of(pipeline, dataset, vocabulary="dataset"), tmp_path / "ahead", workers=2)
    assert torch.equal(counts(alone), counts(ahead))
    assert len(ahead.failures) == 1


class TwoNodes(Processes):
    """The first of two processes whose nodes share no folder; the other has finished what `theirs` says."""

    theirs: tuple[int, ...] = ()

    def smallest(self, values: torch.Tensor) -> torch.Tensor:
        others = torch.full_like(values, 2)
        others[list(self.theirs)] = 1
        return torch.minimum(values, others)

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        return counts

    def gather(self, item: Any) -> list[Any]:
        return [item]


def test_nodes_without_a_common_folder_count_each_image_once(pipeline, tmp_path):
    evaluate(scorer_of(pipeline), tmp_path, limit=2)  # finished here: 0 and 2
    nodes = TwoNodes(rank=0, count=2)
    object.__setattr__(nodes, "theirs", (2, 3))
    computed: list[int] = []
    found = evaluate(scorer_of(pipeline), tmp_path, processes=nodes, on_image=lambda index, _: computed.append(index))
    # 0 and 2 are counted here, being seen here first; 3 by the other; of 1 and 4, still open, one is ours
    assert (found.resumed, computed, found.images) == (2, [1], 3)


def test_what_is_summed_over_processes_stays_as_it_was(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda shared, op: shared.mul_(2))  # in place, as it is
    counts = torch.tensor([1, 5])
    assert Processes(count=2).total(counts).tolist() == [2, 10]
    assert counts.tolist() == [1, 5]


def test_vocabulary_and_variants_are_checked(pipeline):
    with pytest.raises(ValueError, match="vocabulary: expected 'dataset' or 'image', got 'own'"):
        scorer_of(pipeline, vocabulary="own")
    with pytest.raises(ValueError, match="variants: expected at least one, got none"):
        Scorer(pipeline, Few(1), {})


def test_one_config_serves_data_sets_with_and_without_background(pipeline, tmp_path):
    root = voc_of(tmp_path / "voc", 1)
    config = pipeline.config.replace(background_words="default", probability_threshold=0.9)
    with_background = scorer_of(pipeline, open_dataset("voc21", root), {"method": config}, "dataset")
    without = scorer_of(pipeline, open_dataset("voc20", root), {"method": config}, "dataset")
    assert with_background.variants["method"] == config
    assert without.variants["method"] == config.replace(background_words=(), probability_threshold=0.0)
    image = open_dataset("voc20", root)[0]
    assert set(np.unique(without.label_map(image, "method"))) <= set(range(20))
    assert (with_background.label_map(image, "method") == 0).all()  # no class is that sure


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_flat(pipeline, tmp_path):
    dataset = open_dataset("voc21", voc_of(tmp_path / "voc", 120))
    sizes: list[int] = []
    scorer = scorer_of(pipeline, dataset, None, "dataset")
    evaluate(scorer, tmp_path / "out", save_every=0.2, on_image=lambda *_: sizes.append(resident_bytes()))
    # the first images warm caches up; after them 80 images may cost less than 50 kB each would
    assert sizes[-1] - sizes[40] < 80 * 50_000


def test_every_field_of_the_config_is_part_of_the_description(pipeline):
    described = scorer_of(pipeline, Few(1)).description["variants"]["method"]
    assert set(described) == set(json.loads(NerveConfig().to_json()))
