"""A run folder that the version before the renaming of stored keys has left: it goes on from its finished images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nerve_kernels.evaluation import EmbeddedScenes
from nerve_kernels.evaluation.runner import evaluate
from nerve_kernels.evaluation.scorer import Scorer
from nerve_kernels.segmentation import NerveConfig, NervePipeline

FOLDER = Path(__file__).parent / "earlier_version"
WRITTEN = json.loads((FOLDER / "run.json").read_text())
CONFIG = NerveConfig.from_dict(WRITTEN["variants"]["method"])


@pytest.fixture(scope="module")
def pipeline() -> NervePipeline:
    return NervePipeline.from_preset("embedded", device="cpu", config=CONFIG)


def scorer(pipeline: NervePipeline, vocabulary: str = "image") -> Scorer:
    return Scorer(pipeline, EmbeddedScenes("test"), {"method": CONFIG}, vocabulary=vocabulary)


def test_a_run_of_the_earlier_version_goes_on(pipeline, tmp_path):
    assert "pictures" in WRITTEN
    assert WRITTEN["vocabulary"] == "picture"
    folder = shutil.copytree(FOLDER, tmp_path / "run")
    found = evaluate(scorer(pipeline), folder, limit=2)
    assert (found.images, found.resumed) == (2, 2)
    fresh = evaluate(scorer(pipeline), tmp_path / "fresh", limit=2)
    assert fresh.resumed == 0
    assert fresh.confusions["method"].equal(found.confusions["method"])


def test_a_run_of_the_earlier_version_with_another_vocabulary_is_refused(pipeline, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "run")
    with pytest.raises(ValueError, match="vocabulary = 'image', this one has 'dataset'"):
        evaluate(scorer(pipeline, "dataset"), folder, limit=2)


def test_what_is_written_now_has_the_new_keys(pipeline, tmp_path):
    evaluate(scorer(pipeline), tmp_path, limit=1)
    written = json.loads((tmp_path / "run.json").read_text())
    assert "images" in written
    assert "pictures" not in written
    assert written["vocabulary"] == "image"
