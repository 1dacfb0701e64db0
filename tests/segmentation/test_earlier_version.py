"""A features file that the version before the renaming of stored keys has written; its label map lies beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from nerve_kernels.segmentation import ImageFeatures, NervePipeline

FOLDER = Path(__file__).parent / "earlier_version"
FILE = FOLDER / "features.safetensors"


def test_features_of_the_earlier_version_give_the_same_labels():
    with safe_open(FILE, framework="pt") as file:
        names = set(file.keys())
    assert "picture" in names
    assert "image" not in names
    features = ImageFeatures.load(FILE)
    assert features.image.size == (48, 32)
    pipeline = NervePipeline.from_preset("embedded", device="cpu")
    found = pipeline.segment(features, "background, cat, house").indexed()
    with Image.open(FOLDER / "labels.png") as wanted:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    assert len(np.unique(np.asarray(found))) == 3


def test_what_is_written_now_has_the_new_key_and_the_same_content(tmp_path):
    earlier = ImageFeatures.load(FILE)
    written = earlier.save(tmp_path / "new.safetensors")
    with safe_open(written, framework="pt") as file:
        names = set(file.keys())
    assert "image" in names
    assert "picture" not in names
    again = ImageFeatures.load(written)
    assert again.image.tobytes() == earlier.image.tobytes()
    assert torch.equal(again.patches.values, earlier.patches.values)
    assert again.config == earlier.config
