"""The profile of Stable Diffusion's size adds up phases by their names, which must be there."""

from __future__ import annotations

import numpy as np
from benchmarks.sd15_profile import FULL_AND_FAST, MODELS, OURS, stage_times
from PIL import Image

from nerve_kernels.segmentation import NervePipeline
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.presets import PRESETS


def test_the_stages_of_an_image_are_named_as_the_phases_are() -> None:
    pipeline = NervePipeline.from_preset("embedded", device="cpu")
    before = DiffusionFeatures.encode_pixels
    with stage_times() as seconds:
        assert DiffusionFeatures.encode_pixels is not before
        pipeline(Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)), "cat, dog")
    assert DiffusionFeatures.encode_pixels is before
    assert {*MODELS} & {*OURS} == set()
    wanted = {"VAE", "affinity", "random walk", "labels of pixels", "CLIP, words", *MODELS}
    assert wanted <= set(seconds)
    assert all(seconds[stage] > 0 for stage in wanted)


def test_the_presets_are_there() -> None:
    assert set(FULL_AND_FAST) <= set(PRESETS)
