"""``bulk.Segmenter(batch=…)``: images of one size go through the models together, fewer where memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_kernels.segmentation import NervePipeline

pytest.importorskip("pyarrow", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")

from nerve_kernels.bulk import Segmenter


@pytest.fixture(scope="module")
def segmenters():
    return {batch: Segmenter("cat, dog, grass", device="cpu", batch=batch) for batch in (1, 4)}


@pytest.fixture(scope="module")
def images():
    """Six, of which five are of one size, and between them what is no image."""
    random = np.random.default_rng(0)
    found = np.empty(7, dtype=object)
    for number in range(7):
        coarse = Image.fromarray(random.integers(0, 256, (6, 9, 3), dtype=np.uint8))
        found[number] = np.asarray(coarse.resize((60, 90) if number == 4 else (90, 60)))
    found[2] = b"no image"
    return {"id": np.array([f"image {number}" for number in range(7)]), "image": found}


@pytest.fixture
def sizes(monkeypatch):
    """How many images were encoded together, as they go; more than `limit` do not fit."""
    seen: list[int] = []
    real = NervePipeline.encode_all

    def encode_all(self, images, **more):
        seen.append(len(images))
        if len(images) > encode_all.limit:
            raise encode_all.error
        return real(self, images, **more)

    encode_all.limit = 100
    monkeypatch.setattr(NervePipeline, "encode_all", encode_all)
    return seen, encode_all


def test_batches_answer_as_one_by_one_in_order(segmenters, images, sizes):
    seen, _ = sizes
    alone = segmenters[1](images).to_pylist()
    assert seen == [1] * 6
    seen.clear()
    together = segmenters[4](images).to_pylist()
    assert seen == [4, 1, 1]  # five of one size, and one of another
    assert [row["id"] for row in together] == images["id"].tolist()
    assert [row["error"] for row in together] == [None, None, "None: not an image", None, None, None, None]
    for one, other in zip(alone, together, strict=True):
        assert {name: one[name] for name in ("height", "width")} == {name: other[name] for name in ("height", "width")}
        areas = [{label["label"]: label["area"] for label in row["labels"] or ()} for row in (one, other)]
        assert areas[0] == pytest.approx(areas[1], abs=0.001 * 60 * 90)
    assert dict(together[0]["seconds"])["Stable Diffusion"] > 0


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.cuda.OutOfMemoryError("CUDA out of memory")])
def test_a_batch_that_does_not_fit_is_halved(segmenters, images, sizes, error):
    seen, encode_all = sizes
    encode_all.limit, encode_all.error = 2, error
    rows = segmenters[4](images).to_pylist()
    assert seen == [4, 2, 2, 1, 1]
    assert [row["id"] for row in rows if row["error"]] == ["image 2"]
    seen.clear()
    encode_all.limit = 0
    rows = segmenters[4](images).to_pylist()
    assert seen == [4, 2, 1, 1, 2, 1, 1, 1, 1]
    assert {row["error"] for row in rows} == {f"out of memory ({error})", "None: not an image"}


def test_a_batch_is_at_least_one():
    with pytest.raises(ValueError, match="batch: expected"):
        Segmenter("cat, dog", device="cpu", batch=0)
