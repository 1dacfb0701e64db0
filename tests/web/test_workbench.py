import copy
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from nerve_kernels.segmentation import NerveConfig
from nerve_kernels.segmentation.phases import DIFFUSION, PIXELS, READ, SEEDS, WALK
from nerve_kernels.segmentation.result import Segmentation
from nerve_kernels.web import opened_image
from nerve_kernels.web import workbench as module
from nerve_kernels.web.affinity_rows import affinity_row, draw_row
from nerve_kernels.web.limits import RefusedError
from nerve_kernels.web.scenes import known_words, scenes
from nerve_kernels.web.workbench import Workbench

WORDS = scenes()[0].labels
LOCAL, GLOBAL = "local affinity", "global affinity"


@pytest.fixture
def key(workbench: Workbench) -> str:
    return workbench.add(scenes()[0].image)


@pytest.fixture
def config(workbench: Workbench) -> NerveConfig:
    return workbench.pipeline().config.replace(beta=0.5)


def test_the_outcome_is_the_pipelines(workbench, key, config):
    outcome = workbench.segment(key, WORDS, config)
    pipeline = workbench.pipeline()
    wanted = pipeline(scenes()[0].image, WORDS, beta=0.5)
    after = outcome.after.segmentation
    assert after.labels == wanted.labels
    assert after.background == wanted.background == 0
    torch.testing.assert_close(after.token_probabilities, wanted.token_probabilities)
    assert torch.equal(after.label_map, wanted.label_map)
    alone = pipeline(scenes()[0].image, WORDS, walk=False)
    assert torch.equal(outcome.before.segmentation.label_map, alone.label_map)
    assert not torch.equal(after.label_map, alone.label_map)


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        ({}, []),
        ({"alpha": 0.3}, [WALK, PIXELS]),
        ({"steps": 3}, [WALK, PIXELS]),
        ({"beta": 0.9}, [WALK, PIXELS]),
        ({"beta": 0.0}, [WALK, PIXELS]),
        ({"window": 5}, [LOCAL, WALK, PIXELS]),
        ({"temperature": 2.0}, [GLOBAL, LOCAL, WALK, PIXELS]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_slider_runs_only_what_depends_on_it(workbench, key, config, change, ran):
    workbench.segment(key, WORDS, config)
    seconds = workbench.segment(key, WORDS, config.replace(**change)).seconds
    assert [phase for phase in seconds if phase != opened_image.DRAWING] == ran
    assert workbench.segment(key, WORDS, config.replace(**change)).seconds == {}


def test_other_words_do_not_look_at_the_image_again(workbench, key, config):
    first = workbench.segment(key, WORDS, config).seconds
    assert {READ, "CLIP on the image", DIFFUSION, LOCAL, GLOBAL} <= first.keys()
    second = workbench.segment(key, "background, cat, rose", config).seconds
    assert [phase for phase in second if phase != opened_image.DRAWING] == ["CLIP on the words", SEEDS, PIXELS, WALK]


def test_rows_are_those_of_the_dense_affinity(workbench, key, config):
    workbench.segment(key, WORDS, config)
    rows = workbench.rows(key, (100, 70), config)
    height, width = rows.local_row.shape
    image = scenes()[0].image
    assert rows.token == (70 * height // image.height, 100 * width // image.width)
    index = rows.token[0] * width + rows.token[1]
    features = workbench.pipeline().encode(image, config=config)
    for row, beta in ((rows.local_row, 0.0), (rows.global_row, 1.0), (rows.mixed_row, 0.5)):
        dense = features.affinity(config.replace(beta=beta)).to_dense()
        torch.testing.assert_close(row.flatten(), dense[0, index])
        assert row.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_pixels_outside_the_image_take_the_nearest_token(workbench, key, config):
    assert workbench.rows(key, (-5, 10**6), config).token == (47, 0)


def test_head_weights_sum_to_one_and_follow_the_temperature(workbench, key, config):
    sharp = workbench.head_weights(key, config)
    assert sum(head.weight for head in sharp) == pytest.approx(1.0, abs=1e-5)
    assert min(sharp, key=lambda head: head.entropy).weight == max(head.weight for head in sharp)
    alike = workbench.head_weights(key, config.replace(temperature=1000.0))
    assert max(head.weight for head in alike) == pytest.approx(1 / len(alike), abs=1e-3)


def test_explicit_factors_have_no_row_here():
    import nerve_kernels as nk

    with pytest.raises(ValueError, match="affinity: expected one that averages over cells"):
        affinity_row(nk.LowRankAffinity(torch.ones(1, 4, 2), torch.ones(1, 4, 2), grid=(2, 2)), 0)


def test_a_heat_map_is_brightest_where_the_weight_is():
    row = torch.zeros(4, 4)
    row[3, 0] = 1.0
    drawn = draw_row(row, (0, 3), Image.new("RGB", (64, 64))).convert("L")
    assert drawn.getpixel((20, 240)) > 150
    assert drawn.getpixel((128, 128)) < 30


def test_states_while_models_load():
    gate = threading.Event()

    def load():
        gate.wait(60)
        raise OSError("diffusion: cannot\nload it")

    bench = Workbench(load)
    bench.start_loading()
    key = bench.add(scenes()[0].image)
    assert bench.models_state().state == "loading"
    with pytest.raises(RefusedError, match="still loading"):
        bench.segment(key, WORDS, NerveConfig())
    gate.set()
    assert bench.models_state(timeout=60).words == "diffusion: cannot load it"
    with pytest.raises(RefusedError, match="could not be loaded: diffusion: cannot load it"):
        bench.segment(key, WORDS, NerveConfig())


def test_only_the_latest_images_are_held(workbench):
    keys = [workbench.add(Image.new("RGB", (8, 8), (i, i, i))) for i in range(module.IMAGES_HELD)]
    assert workbench.opened(keys[0]).image.getpixel((0, 0)) == (0, 0, 0)  # and so it is the latest used
    newest = workbench.add(Image.new("RGB", (8, 8), "red"))
    with pytest.raises(RefusedError, match="no longer held"):
        workbench.opened(keys[1])
    assert workbench.opened(keys[0]) is not workbench.opened(newest)
    for wrong in (None, "", {"path": "/etc/passwd"}):
        with pytest.raises(RefusedError, match="Drop an image"):
            workbench.opened(wrong)


def test_of_two_hundred_images_only_the_latest_stay_in_memory(pipeline, monkeypatch):
    """Without the garbage collector: an image's tensors must go with the image, not when it comes round."""
    config = pipeline.config.replace(steps=1)
    encoded = pipeline.encode(Image.new("RGB", (32, 32)), config=config.replace(walk=True))
    alive: list[weakref.ref] = []

    class Encoded:
        """The pipeline, with the models' part done once for all images."""

        def __getattr__(self, name):
            return getattr(pipeline, name)

        def encode(self, image, config):
            features = copy.copy(encoded)
            alive.append(weakref.ref(features))
            return features

    monkeypatch.setattr(Segmentation, "overlay", lambda self: Image.new("RGB", (2, 2)))
    bench = Workbench(Encoded)
    bench.start_loading()
    assert bench.models_state(timeout=60).state == "ready"
    gc.collect()
    gc.disable()
    try:
        for i in range(200):
            key = bench.add(Image.new("RGB", (32, 32), (i, 0, 0)))
            outcome = bench.segment(key, "cat, dog", config)
            bench.rows(key, (0, 0), config)
            bench.head_weights(key, config)
            alive += [weakref.ref(bench.opened(key)), weakref.ref(outcome.after.segmentation.label_map)]
            assert sum(reference() is not None for reference in alive) <= 3 * module.IMAGES_HELD + 1
    finally:
        gc.enable()
    assert sum(reference() is not None for reference in alive) == 3 * module.IMAGES_HELD


def test_jobs_run_one_at_a_time(workbench, config, monkeypatch):
    running, most = 0, 0

    def run(self, labels, config):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1

    monkeypatch.setattr(opened_image.OpenedImage, "segment", run)
    keys = [workbench.add(scene.image) for scene in scenes()]
    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(lambda key: workbench.segment(key, WORDS, config), keys * 3))
    assert (running, most) == (0, 1)


def test_the_same_image_is_opened_once(workbench):
    one, other = (workbench.add(scenes()[1].image.copy()) for _ in range(2))
    assert one == other
    assert workbench.opened(one) is workbench.opened(other)
    # pixels alone do not make an image: 2 × 4 and 4 × 2 of one colour hold the same bytes
    assert workbench.add(Image.new("RGB", (2, 4))) != workbench.add(Image.new("RGB", (4, 2)))


def test_the_scenes_ask_for_words_that_the_models_know():
    known = set(known_words().split(", "))
    for scene in scenes():
        assert set(scene.labels.split(", ")) - {"background"} <= known
