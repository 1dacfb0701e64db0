"""``nerve-segment --batch``: images go through the models together, and each is answered for by itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.command_line import run_main, written

from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.pipeline import NervePipeline


@pytest.fixture
def five(images):
    """Five images, of which three are of one size."""
    random = np.random.default_rng(0)
    for number in range(2):
        pixels = random.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 60)).save(images / f"noise_{number}.png")
    shutil.copy(images / "wide.png", images / "xlast.png")
    return images


def batches(monkeypatch):
    """How many images went through the UNet's attention together, as they go."""
    seen = []
    real = DiffusionFeatures.capture_pixels

    def capture(self, pixels, config):
        seen.append(len(pixels))
        return real(self, pixels, config)

    monkeypatch.setattr(DiffusionFeatures, "capture_pixels", capture)
    return seen


def test_batches_answer_as_one_by_one_in_order(models, five, tmp_path, capsys, monkeypatch):
    seen = batches(monkeypatch)
    arguments = [five, "-l", "cat, dog, grass", "--explain", "--json", *models]
    code, alone, _ = run_main(capsys, *arguments, "-o", tmp_path / "alone")
    assert (code, seen) == (0, [1] * 5)
    seen.clear()
    code, together, _ = run_main(capsys, *arguments, "-o", tmp_path / "together", "--batch", "4")
    assert code == 0
    assert sorted(seen) == [1, 1, 3]  # noise and wide.png are of one size; the tall one and the last are by themselves
    one, other = ([json.loads(line) for line in out.splitlines()] for out in (alone, together))
    names = [entry["picture"].rpartition("/")[2] for entry in other]
    assert names == ["noise_0.png", "noise_1.png", "tall.jpg", "wide.png", "xlast.png"]
    assert [entry["picture"] for entry in one] == [entry["picture"] for entry in other]
    stages = {stage["stage"] for stage in other[0]["stages"]}
    assert {"read the image", "CLIP, image", "Stable Diffusion", "affinity", "random walk", "write"} <= stages
    for file in (tmp_path / "alone").glob("*_labels.png"):
        same = np.asarray(Image.open(file)) == np.asarray(Image.open(tmp_path / "together" / file.name))
        assert same.mean() >= 0.999


def test_an_image_that_cannot_be_read_fails_by_itself(models, five, tmp_path, capsys, monkeypatch):
    seen = batches(monkeypatch)
    (five / "noise_1.png").write_bytes(b"no image")
    code, _, err = run_main(capsys, five, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *models, "--batch", "5")
    assert code == 1
    assert err == f"{five / 'noise_1.png'}: not an image\n"
    assert sorted(seen) == [1, 3]
    assert len(written(tmp_path / "out")) == 12


def test_a_batch_that_fails_goes_one_by_one(models, five, tmp_path, capsys, monkeypatch):
    real = NervePipeline.encode_all
    calls = []

    def encode(self, images, *, config=None):
        calls.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(calls) == 3:
            raise ValueError("of this image alone")
        return real(self, images, config=config)

    monkeypatch.setattr(NervePipeline, "encode_all", encode)
    code, _, err = run_main(capsys, five, "-l", "cat, dog", "-o", tmp_path / "out", *models, "--batch", "3")
    assert code == 1
    assert calls == [3, 1, 1, 1, 1, 1]
    assert "out of memory with --batch 3: the rest go one by one; a smaller one may fit" in err
    assert f"{five / 'noise_1.png'}: of this image alone" in err
    assert len(written(tmp_path / "out")) == 12


def test_a_batch_is_a_positive_number(models, images, tmp_path, capsys):
    code, out, err = run_main(capsys, images, "-l", "cat, dog", "-o", tmp_path / "out", *models, "--batch", "0")
    assert (code, out) == (2, "")
    assert "--batch" in err
