"""The whole command on tiny random checkpoints; nothing is fetched."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import typer
from PIL import Image
from tests.cli.command_line import run, run_main, written


def test_a_folder(models, images, tmp_path):
    result = run(images, "--labels", "cat, dog|puppy, grass", "--out", tmp_path / "out", *models)
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "out") == [
        "tall.json",
        "tall_labels.png",
        "tall_overlay.png",
        "wide.json",
        "wide_labels.png",
        "wide_overlay.png",
    ]
    summary = json.loads((tmp_path / "out" / "wide.json").read_text())
    assert (summary["width"], summary["height"]) == (90, 60)
    assert [row["label"] for row in summary["labels"]] == ["cat", "dog", "grass"]
    assert sum(row["area_fraction"] for row in summary["labels"]) == pytest.approx(1.0)
    with Image.open(tmp_path / "out" / "wide_labels.png") as labels:
        assert (labels.mode, labels.size) == ("P", (90, 60))
    assert result.stdout.splitlines() == [str(tmp_path / "out" / f"{n}_overlay.png") for n in ("tall", "wide")]
    assert "segmenting" in result.stderr  # the progress bar


def test_a_subprocess(models, images, tmp_path):
    command = [sys.executable, "-m", "nerve_kernels.cli", str(images / "*.png"), "-l", "cat, dog", "-o", "out"]
    done = subprocess.run([*command, *models], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "out") == ["wide.json", "wide_labels.png", "wide_overlay.png"]
    assert done.stdout.strip() == os.path.join("out", "wide_overlay.png")  # noqa: PTH118
    assert "Traceback" not in done.stderr
    assert "warning" not in done.stderr.lower()


def test_a_file_that_is_no_image_is_one_line_and_the_rest_is_written(models, images, tmp_path, capsys):
    (images / "broken.png").write_text("no image")
    code, out, err = run_main(
        capsys, images, tmp_path / "absent.png", "-l", "cat, dog", "-o", tmp_path / "out", *models
    )
    assert code == 1
    assert len(out.splitlines()) == 2
    lines = [line for line in err.splitlines() if "broken" in line or "absent" in line]
    assert lines == [
        f"{tmp_path / 'absent.png'}: no such file or folder",
        f"{images / 'broken.png'}: not an image",
    ]
    assert len(written(tmp_path / "out")) == 6


def test_only_files_that_are_no_images(models, tmp_path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    code, out, err = run_main(capsys, text, "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert (code, out) == (1, "")
    assert f"{text}: not an image" in err
    assert "Traceback" not in err


def test_options_override_the_config(models, images, tmp_path, monkeypatch):
    from nerve_kernels.cli import segment_command as command

    def settings(*options: object) -> dict[str, object]:
        """The config that reaches the pipeline, which is not made."""
        reached: list[dict[str, object]] = []

        def stop(*arguments: object) -> None:
            reached.append(dataclasses.asdict(arguments[-1]))  # type: ignore[call-overload]
            raise typer.Exit(0)

        monkeypatch.setattr(command, "load", stop)
        assert run(images / "wide.png", "-l", "cat, dog", *models, *options).exit_code == 0
        return reached[0]

    plain = settings()
    assert plain["templates"] == "name"  # from the file
    for options, changed in (
        (("--alpha", 0.2), {"alpha": 0.2}),
        (("--beta", 0), {"beta": 0.0}),
        (("--steps", 1), {"steps": 1}),
        (("--tolerance", 0.5), {"tolerance": 0.5, "steps": None}),
        (("--temperature", 5), {"temperature": 5.0}),
        (("--criterion", "uniform"), {"criterion": "uniform"}),
        (("--heads", "information"), {"criterion": "information"}),
        (("--keep", 2), {"keep": 2}),
        (("--window", 1), {"window": 1}),
        (("--cells", 2), {"cells": 2}),
        (("--timesteps", "400, 800"), {"timesteps": (400, 800)}),
        (("--layers", "64, latent/1, up_blocks.*"), {"layers": (64, "latent/1", "up_blocks.*")}),
        (("--templates", "photo"), {"templates": "photo"}),
        (("--seed-mode", "cross_attention"), {"seed_mode": "cross_attention"}),
        (("--noise-seed", 3), {"noise_seed": 3}),
        (("--no-walk",), {"walk": False}),
        (("--background", "sky, wall"), {"background_words": ("sky", "wall")}),
        (("--background", "default"), {"background_words": "default"}),
        (("--threshold", 0.1), {"probability_threshold": 0.1}),
        (("--backend", "eager"), {"backend": "eager"}),
        (("--size", 64), {"diffusion_size": 64}),
        (("--clip-size", 48), {"clip_size": 48}),
    ):
        assert settings(*options) == {**plain, **changed}


def test_options_change_the_result(models, images, tmp_path):
    def summary(*options: object) -> dict[str, Any]:
        result = run(images / "wide.png", "-l", "cat, dog", "-o", tmp_path / "out", *models, *options)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "out" / "wide.json").read_text())

    plain = summary()
    assert summary("--alpha", 0.2) != plain
    assert summary("--dtype", "float32", "--keep", 6) == plain
    # another backend rounds differently, and changes nothing else
    for row, expected in zip(summary("--backend", "eager")["labels"], plain["labels"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_labels_beside_the_images(models, images, tmp_path):
    (images / "labels.txt").write_text("cat\ndog\n")
    (images / "tall.txt").write_text("sky, grass")
    result = run(images, "-o", tmp_path / "out", *models)
    assert result.exit_code == 0, result.output
    seen = {
        name: [row["label"] for row in json.loads((tmp_path / "out" / f"{name}.json").read_text())["labels"]]
        for name in ("wide", "tall")
    }
    assert seen == {"wide": ["cat", "dog"], "tall": ["sky", "grass"]}


def test_labels_beside_an_image_that_cannot_be_used_are_refused_with_its_name(models, images, tmp_path, capsys):
    (images / "labels.txt").write_text("cat, dog")
    (images / "tall.txt").write_text("cat,,dog")
    code, _, err = run_main(capsys, images, "-o", tmp_path / "out", *models)
    assert code == 2
    assert "labels: label 2 is empty; write names between the commas, as in 'cat, dog|puppy' (found beside " in err
    assert err.endswith(f"{images / 'tall.jpg'})\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "cat,,dog"], "labels: label 2 is empty"),
        (["--labels", ""], "labels: expected at least one, as in 'cat, dog|puppy', got none"),
        (["--labels", "cat"], "labels: got only 'cat'"),
        ([], "--labels: wanted"),
        (["--labels", "cat, dog", "--alpha", "1.5"], "alpha: expected a number in [0, 1), got 1.5"),
        (["--labels", "cat, dog", "--alpha", "much"], "--alpha"),
        (["--labels", "cat, dog", "--window", "4"], "window: expected an odd int ≥ 1 (tokens), or two of them, got 4"),
        (["--labels", "cat, dog", "--steps", "3", "--tolerance", "0.1"], "exactly one of them"),
        (
            ["--labels", "cat, dog", "--timesteps", "early"],
            "whole numbers such as '50, 100', got 'early'",
        ),
        (["--labels", "cat, dog", "--no-such-option"], "--no-such-option"),
        (["--labels", "cat, dog", "--preset", "embeded"], "did you mean 'embedded'"),
        (["--labels", "cat, dog", "--config", "/no/such/file"], "--config: cannot read /no/such/file"),
        (["--labels", "cat, dog", "--layers", "up_blocks.7"], "layers: 'up_blocks.7' fits none of"),
        (
            ["--labels", "cat, dog", "--timesteps", "1000"],
            "timesteps: expected an int from 0 to 999",
        ),
        (["--labels", "cat, dog", "--out", __file__], f"--out: expected a folder, got the file {__file__}"),
        (["--labels", "cat, dog", "--device", "gpu9"], "got 'gpu9', which cannot be used here"),
        (["--labels", "cat, dog", "--dtype", "int8"], "dtype: expected float32, float16 or bfloat16, got 'int8'"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(models, images, tmp_path, capsys, options, message):
    arguments = list(options)
    if "--preset" not in options and "--config" not in options:
        arguments = [*models, *options]  # typer takes the last of a repeated option
    code, out, err = run_main(capsys, images / "wide.png", "-o", tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("nerve-segment: ")
    assert message in err
    assert written(tmp_path / "out") == []


def test_no_images_at_all(capsys, tmp_path):
    code, _, err = run_main(capsys, "--labels", "cat, dog")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "IMAGE" in err
    code, _, err = run_main(capsys, tmp_path / "*.png", "--labels", "cat, dog")
    assert code == 1
    assert err.splitlines() == [f"{tmp_path}/*.png: no image fits this pattern"]


def test_a_config_that_is_wrong(models, images, tmp_path, capsys):
    config = tmp_path / "config.json"
    for text, message in (
        ('{"aplha": 1}', "unknown field 'aplha'; did you mean 'alpha'"),
        ("{", "config: not valid JSON"),
        ('{"beta": 7}', "beta: expected a number in [0, 1], got 7"),
    ):
        config.write_text(text)
        code, _, err = run_main(capsys, images, "-l", "cat, dog", *models, "--config", config)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert message in err


def test_models_out_of_reach_are_one_line(images, tmp_path, capsys):
    for options, message in (
        (["--preset", "sd15-clip-b16"], "from the Hugging Face hub"),
        (["--diffusion", tmp_path / "no", "--clip", tmp_path / "no"], "does not exist"),
    ):
        code, _, err = run_main(capsys, images, "-l", "cat, dog", "-o", tmp_path / "out", *options)
        assert code == 1
        assert message in err.splitlines()[-1]
        assert "Traceback" not in err


def test_names_are_shown_as_they_are(models, images, tmp_path, capsys):
    odd = images / "[red]:smile: [x].png"
    odd.write_text("no image")
    code, _, err = run_main(capsys, odd, "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert code == 1
    assert f"{odd}: not an image" in err


def test_help(capsys):
    code, out, _ = run_main(capsys, "--help")
    assert code == 0
    for option in ("--labels", "--preset", "--out", "--config", "--device", "--alpha", "--beta", "--temperature"):
        assert option in out


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    from nerve_kernels.segmentation import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    code, _, err = run_main(capsys, "x.png")
    assert code == 1
    assert err.count("\n") == 1
    assert 'pip install "nerve_kernels[segmentation]"' in err
