"""Checkpoints that give no numbers, are incomplete or absurd: a sentence and exit code 1; wrong options: 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.command_line import run_main
from tests.segmentation.tiny_checkpoints import CLIP_WEIGHTS, copy_with_config, copy_with_weights, spoilt

from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.finite import NotFiniteError
from nerve_kernels.segmentation.text_image.clip import DenseClip


def test_the_command_says_so_for_each_image_and_writes_json(models, images, tmp_path, capsys):
    """An image that overflows fails by itself; the others are written."""
    clip = copy_with_weights(Path(models[3]), tmp_path / "clip", CLIP_WEIGHTS, spoilt("text_projection.weight"))
    changed = [*models[:3], clip, *models[4:]]
    code, out, err = run_main(capsys, images, "-q", "--json", "-l", "cat, dog", "-o", tmp_path / "out", *changed)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(": CLIP, words: expected finite numbers, got NaN or infinity in " in line for line in lines)
    assert len([json.loads(line)["error"] for line in out.splitlines()]) == 2
    assert not list((tmp_path / "out").iterdir())


def test_the_other_images_go_on(models, images, tmp_path, capsys, monkeypatch):
    real = DenseClip.embed_images
    seen = []

    def embed(self, images, config):
        seen.append(images[0].size)
        found = real(self, images, config)
        if len(seen) == 1:
            raise NotFiniteError("CLIP, image: expected finite numbers, got NaN or infinity in 1 of 2; ...")
        return found

    monkeypatch.setattr(DenseClip, "embed_images", embed)
    code, _, err = run_main(capsys, images, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert (code, len(err.splitlines())) == (1, 1)
    assert len(list((tmp_path / "out").iterdir())) == 3


def without_projection(weights):
    return {key: value for key, value in weights.items() if key != "visual_projection.weight"}


def with_a_longer_scale(weights):
    return {**weights, "logit_scale": weights["logit_scale"].repeat(3)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_projection, "missing: visual_projection.weight."),
        (with_a_longer_scale, "of another shape: logit_scale (3, expected )."),
    ],
)
def test_weights_that_do_not_fit_end_the_command(models, images, tmp_path, capsys, change, said):
    clip = copy_with_weights(Path(models[3]), tmp_path / "clip", CLIP_WEIGHTS, change)
    changed = [*models[:3], clip, *models[4:]]
    code, out, err = run_main(capsys, images, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *changed)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert said in err


def test_an_absurd_config_ends_the_command(models, images, tmp_path, capsys):
    clip = copy_with_config(Path(models[3]), tmp_path / "clip", "config.json", text_config__num_hidden_layers=10**9)
    changed = [*models[:3], clip, *models[4:]]
    code, out, err = run_main(capsys, images, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *changed)
    assert (code, out) == (1, "")
    assert "config.json: text_config.num_hidden_layers: expected 1 to 128, got 1000000000." in err


@pytest.mark.parametrize("backend", ["nope", "", "CPP", "cuda\n"])
def test_a_backend_that_is_not_here_is_refused_before_any_model_is_loaded(images, tmp_path, capsys, backend):
    nowhere = ["--diffusion", tmp_path / "nowhere", "--clip", tmp_path / "nowhere"]
    arguments = [images, "-q", "-l", "cat, dog", "-o", tmp_path / "out", f"--backend={backend}", *nowhere]
    code, out, err = run_main(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("nerve-segment: ")
    assert "backend: " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("where", ["labels", "synonym", "background", "labels.txt"])
def test_a_name_longer_than_any_is_refused_before_any_model_is_loaded(images, tmp_path, capsys, where):
    long = "a" * 5000
    options = {
        "labels": ["-l", f"cat, {long}"],
        "synonym": ["-l", f"cat|{long}, dog"],
        "background": ["-l", "cat, dog", "--background", f"sky, {long}"],
        "labels.txt": [],
    }[where]
    if where == "labels.txt":
        (images / "labels.txt").write_text(f"cat\n{long}")
    nowhere = ["--diffusion", tmp_path / "nowhere", "--clip", tmp_path / "nowhere"]
    code, out, err = run_main(capsys, images, "-q", "-o", tmp_path / "out", *options, *nowhere)
    assert (code, out) == (2, "")
    assert "expected at most 300 characters a name, got 5000 ('aaaaaaaaaaaaaaaaaaaa'...); shorten it" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("absent", ["diffusion", "clip"])
def test_a_folder_that_is_not_there_is_refused_before_anything_is_loaded(
    models, images, tmp_path, capsys, monkeypatch, absent
):
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(DiffusionFeatures, "from_pretrained", load)
    monkeypatch.setattr(DenseClip, "from_pretrained", load)
    options = [*models, f"--{absent}", tmp_path / "absent"]
    code, out, err = run_main(capsys, images, "-l", "cat, dog", "-o", tmp_path / "out", *options)
    assert (code, out) == (1, "")
    assert f"{absent}: the folder {tmp_path / 'absent'} does not exist; wanted a checkpoint" in err
    assert err.count("\n") == 1
