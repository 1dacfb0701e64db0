"""A large image takes a bounded number of bytes a pixel to read and to draw; a file of 76 kB once took 6.4 GB."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_kernels.segmentation.output.render import OPACITY, _colour
from nerve_kernels.segmentation.result import Segmentation

# What is held at once: the image 4, the labels of pixels 8, and while it is drawn indices, overlay, outline and canvas.
MAX_BYTES_PER_PIXEL = 40
SIDE = 2000

MEASURE = """
import re, sys
from pathlib import Path
import torch
from PIL import Image
from nerve_kernels.segmentation.images import load_image
from nerve_kernels.segmentation.result import Segmentation

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def use(image, out, beside):
    label_map = torch.zeros(image.height, image.width, dtype=torch.int64)
    label_map[image.height // 2 :] = 1
    planes = torch.full((2, 8, 8), 0.5)
    Segmentation(image, ("a", "b"), label_map, planes).save(out, side_by_side=beside)

for beside in (False, True):
    use(Image.new("RGB", (64, 64)), "out", beside)  # what is made once is made now
    for file in sys.argv[1:]:
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        use(load_image(file), "out", beside)
        print(file, beside, status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_bytes_a_pixel_are_bounded(tmp_path):
    files = {"L": "grey.png", "RGB": "colour.png", "RGBA": "clear.png", "I;16": "deep.png", "F": "float.tiff"}
    for mode, name in files.items():
        Image.new(mode, (SIDE, SIDE)).save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files.values()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        # so that what is freed counts as freed, as it does for images larger than these
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    measured = [line.split() for line in done.stdout.splitlines()]
    assert len(measured) == 2 * len(files)
    for name, beside, peak in measured:
        assert int(peak) <= (MAX_BYTES_PER_PIXEL + 8 * (beside == "True")) * SIDE**2, (name, beside, peak)


@pytest.mark.parametrize("background", [None, 0])
@pytest.mark.parametrize("size", [(70, 50), (700, 500)])
def test_drawing_in_bands_changes_nothing(monkeypatch, background, size):
    generator = torch.Generator().manual_seed(0)
    label_map = torch.randint(-1, 3, (5, 7), generator=generator).repeat_interleave(size[1] // 5, 0)
    label_map = label_map.repeat_interleave(size[0] // 7, 1)
    image = Image.effect_noise(size, 90).convert("RGB")
    result = Segmentation(image, ("background", "cat", "dog"), label_map, torch.rand(3, 5, 7), background)
    at_once = result.overlay(side_by_side=True).tobytes(), result.indexed().tobytes()
    for pixels in (1, 1000, 7777):
        monkeypatch.setattr("nerve_kernels.segmentation.images.BAND_PIXELS", pixels)
        assert (result.overlay(side_by_side=True).tobytes(), result.indexed().tobytes()) == at_once


def test_colours_are_those_of_the_definition():
    """Grey under a label and mixed with its colour, untouched elsewhere, white where two labels meet."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    indices = random.integers(0, 3, (9, 11)).astype(np.int32)
    colours = [None, (200, 10, 30), (5, 120, 250)]
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L"))
    found = np.asarray(_colour(image, indices, colours))
    for (row, column), index in np.ndenumerate(indices):
        beside = [
            indices[y, x]
            for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            if 0 <= y < 9 and 0 <= x < 11
        ]
        if any(other != index for other in beside):
            wanted = np.full(3, 255)
        elif index == 0:
            wanted = pixels[row, column]
        else:
            wanted = np.round(grey[row, column] * (1 - OPACITY) + np.array(colours[index]) * OPACITY)
        np.testing.assert_allclose(found[row, column], wanted, atol=1)
