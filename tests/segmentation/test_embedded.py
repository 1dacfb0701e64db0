"""The default preset on the images that ship with it: real weights, no connection."""

import json

import pytest
import torch

from nerve_kernels.segmentation import NervePipeline
from nerve_kernels.segmentation.presets import EMBEDDED_FOLDER

DEMO = EMBEDDED_FOLDER / "demo"
ENTRIES = json.loads((DEMO / "labels.json").read_text())["images"]


@pytest.fixture(scope="module")
def embedded() -> NervePipeline:
    return NervePipeline.from_preset("embedded", device="cpu")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"])
def test_demo_images_show_several_labels(embedded, entry):
    result = embedded(DEMO / entry["file"], entry["labels"])
    assert result.labels == tuple(entry["labels"])
    assert result.background == 0
    torch.testing.assert_close(result.probabilities.sum(0), torch.ones(result.label_map.shape))
    areas = [row["area_fraction"] for row in result.summary()["labels"]]
    assert 0.3 < areas[0] < 0.9  # the background, but not everything
    assert sum(area > 0.01 for area in areas[1:]) >= 2


def test_the_walk_makes_regions_whole(embedded):
    """Attention knows what belongs together: fewer borders between labels than CLIP alone draws."""

    def borders(label_map: torch.Tensor) -> int:
        across = label_map[1:] != label_map[:-1]
        along = label_map[:, 1:] != label_map[:, :-1]
        return int(across.sum() + along.sum())

    for entry in ENTRIES:
        features = embedded.encode(DEMO / entry["file"])
        walked = embedded.segment(features, entry["labels"])
        alone = embedded.segment(features, entry["labels"], config=features.config.replace(walk=False))
        assert borders(walked.label_map) < borders(alone.label_map)
