"""One pipeline, many threads: each gets what it would have got alone, to the bit."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_kernels.segmentation import NervePipeline

THREADS = 6
CALLS = 4


@pytest.fixture
def swift_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def random_images():
    random = np.random.default_rng(5)
    sizes = [(40, 60), (64, 48), (33, 50), (48, 48)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]


def test_calls_from_many_threads_give_what_they_give_alone(pipeline, tiny_config, swift_switches):
    pipeline = NervePipeline(attention=pipeline.attention, text_image=pipeline.text_image, config=tiny_config)
    images = random_images()
    # By every layer and by one, so that captures that see another thread's pass are seen in turn.
    overrides = [{"layers": ("latent/1",)}, {"layers": ("latent/1", "latent/2"), "window": 1}]
    jobs = [(image, override) for image in images for override in overrides]
    labels = "cat, dog, grass"
    alone = [pipeline(image, labels, **override) for image, override in jobs]
    start = threading.Barrier(THREADS)

    def work(number):
        start.wait()
        order = [(number + step) % len(jobs) for step in range(CALLS)]
        return [(index, pipeline(jobs[index][0], labels, **jobs[index][1])) for index in order]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [pair for pairs in pool.map(work, range(THREADS)) for pair in pairs]
    assert len(found) == THREADS * CALLS
    for index, result in found:
        assert torch.equal(result.token_probabilities, alone[index].token_probabilities)
        assert torch.equal(result.label_map, alone[index].label_map)


def test_a_pass_outside_of_a_capture_is_not_captured(diffusion, swift_switches):
    """Another thread's own pass of the UNet calls its hooks too."""
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))

    def capture():
        generator = torch.Generator().manual_seed(2)
        return diffusion.capture(latent, timesteps=(1, 2), layers=["latent/1"], generator=generator)

    expected = capture()
    done = threading.Event()

    def disturb():
        while not done.is_set():
            diffusion.denoise(other, 5)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(10):
            for layer, wanted in zip(capture(), expected, strict=True):
                assert layer.grid == wanted.grid
                assert torch.equal(layer.q, wanted.q)
                assert torch.equal(layer.k, wanted.k)
    finally:
        done.set()
        thread.join()


def test_features_are_segmented_by_many_threads(pipeline, swift_switches):
    """With more settings than are kept, so that results are let go while others ask for them."""
    features = pipeline.encode(random_images()[1])
    configs = [pipeline.config.replace(temperature=0.1 + 0.05 * step, beta=0.25) for step in range(12)]
    labels = "cat, dog, grass"
    alone = [pipeline.segment(features, labels, config=config).token_probabilities for config in configs]
    start = threading.Barrier(THREADS)

    def work(number):
        start.wait()
        order = [(5 * number + 7 * step) % len(configs) for step in range(12)]
        return [(index, pipeline.segment(features, labels, config=configs[index])) for index in order]

    with ThreadPoolExecutor(THREADS) as pool:
        for pairs in pool.map(work, range(THREADS)):
            for index, result in pairs:
                assert torch.equal(result.token_probabilities, alone[index])
