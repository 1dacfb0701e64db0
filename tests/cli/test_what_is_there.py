"""What was given, and what others have made, is never replaced without a word; our own earlier results are."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.command_line import run_main, written

from nerve_kernels.segmentation import NerveConfig
from nerve_kernels.segmentation.result import is_own_summary

NAMES = ["wide.json", "wide_labels.png", "wide_overlay.png"]
NO_MODELS = ["--diffusion", "/no", "--clip", "/no"]  # where nothing may be loaded: a refusal comes first


@pytest.fixture
def image(images: Path) -> Path:
    return images / "wide.png"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_ours_is_refused_before_any_model_is_loaded(models, image, tmp_path, capsys, name):
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir()
    theirs.write_text('{"shapes": []}')
    code, out, err = run_main(capsys, image, "-l", "cat, dog", "-o", theirs.parent, *NO_MODELS)
    assert (code, out) == (2, "")
    assert f"--out: {theirs} is there and is no earlier result of this command; choose another folder, or" in err
    assert err.count("\n") == 1
    assert theirs.read_text() == '{"shapes": []}'
    code, _, err = run_main(capsys, image, "-q", "-l", "cat, dog", "-o", theirs.parent, *models, "--overwrite")
    assert (code, err) == (0, "")
    assert written(theirs.parent) == NAMES
    assert is_own_summary(theirs.parent / "wide.json")


def test_the_images_own_folder_with_an_overlay_that_somebody_else_made(image, capsys):
    theirs = image.with_name("wide_overlay.png")
    Image.new("RGB", (3, 3)).save(theirs)
    before = theirs.read_bytes()
    code, _, err = run_main(capsys, image, "-l", "cat, dog", "-o", image.parent, *NO_MODELS)
    assert (code, f"--out: {theirs} is there" in err) == (2, True)
    assert theirs.read_bytes() == before


def test_our_own_earlier_results_are_replaced(models, image, tmp_path, capsys):
    arguments = (image, "-q", "-o", tmp_path / "out", *models)
    assert run_main(capsys, *arguments, "-l", "cat, dog") == (0, "", "")
    assert run_main(capsys, *arguments, "-l", "grass, sky") == (0, "", "")
    summary = json.loads((tmp_path / "out" / "wide.json").read_text())
    assert [row["label"] for row in summary["labels"]] == ["grass", "sky"]


def test_what_was_given_is_not_replaced_with_overwrite_either(image, capsys):
    labels = image.with_name("wide_labels.png")
    Image.new("RGB", (3, 3)).save(labels)
    options = ("-l", "cat, dog", "-o", image.parent, "--overwrite", *NO_MODELS)
    code, _, err = run_main(capsys, image, labels, *options)
    assert (code, f"--out: {labels} was given and would be replaced" in err) == (2, True)


def test_settings_that_were_given_are_not_replaced_by_a_summary(image, tmp_path, capsys):
    config = tmp_path / "out" / "wide.json"
    NerveConfig().save(config)
    for more in ((), ("--overwrite",)):
        code, _, err = run_main(
            capsys, image, "-l", "cat, dog", "-o", config.parent, "--config", config, *NO_MODELS, *more
        )
        assert (code, f"--out: {config} was given and would be replaced" in err) == (2, True)
    assert NerveConfig.load(config) == NerveConfig()


def test_settings_are_not_saved_over_what_was_given(image, tmp_path, capsys):
    (image.parent / "labels.txt").write_text("cat, dog")
    (image.parent / "link.json").symlink_to(image)
    for name in ("wide.png", "labels.txt", "link.json"):
        before = (image.parent / name).read_bytes()
        for more in ((), ("--overwrite",)):
            code, _, err = run_main(
                capsys, image, "-o", tmp_path / "out", "--save-config", image.parent / name, *NO_MODELS, *more
            )
            assert code == 2
            assert f"--save-config: {image.parent / name} was given and would be replaced; choose another file" in err
        assert (image.parent / name).read_bytes() == before


def test_settings_are_not_saved_where_a_result_goes(image, tmp_path, capsys):
    for name in NAMES:
        code, _, err = run_main(
            capsys, image, "-l", "a, b", "-o", tmp_path / "out", "--save-config", tmp_path / "out" / name, *NO_MODELS
        )
        assert (code, f"--save-config: {tmp_path / 'out' / name} is where a result goes" in err) == (2, True)
    assert written(tmp_path / "out") == []


def test_settings_replace_settings_and_nothing_else(tmp_path, capsys):
    file = tmp_path / "mine.json"
    assert run_main(capsys, "--alpha", 0.25, "--save-config", file) == (0, "", "")
    assert run_main(capsys, "--alpha", 0.5, "--save-config", file) == (0, "", "")
    assert run_main(capsys, "--config", file, "--beta", 0.125, "--save-config", file) == (0, "", "")
    assert (NerveConfig.load(file).alpha, NerveConfig.load(file).beta) == (0.5, 0.125)
    file.write_text("my notes")
    code, _, err = run_main(capsys, "--save-config", file)
    assert (code, f"--save-config: {file} is there and holds no settings; choose another file, or" in err) == (2, True)
    assert file.read_text() == "my notes"
    assert run_main(capsys, "--save-config", file, "--overwrite") == (0, "", "")
    assert NerveConfig.load(file) is not None


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, '{"width": 1}', "\xff"])
def test_what_is_no_summary_of_ours(tmp_path, content):
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    assert not is_own_summary(tmp_path / "x.json")
    assert not is_own_summary(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert not is_own_summary(tmp_path / "pipe")


def test_links_in_a_circle_are_refused_in_a_line(image, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "wide.json").symlink_to("wide.json")
    code, _, err = run_main(capsys, image, "-l", "cat, dog", "-o", tmp_path / "out", *NO_MODELS)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("closed", ["stdout", "every stream, from the start"])
def test_closed_streams_cost_nothing_but_what_is_said(warm_python, models, images, tmp_path, closed):
    """With stdout closed its number would go to the next file that is opened."""
    arguments = [str(images), "-l", "cat, dog", "-o", "out", "--json", *models]
    if closed == "stdout":
        code = "import sys\nfrom nerve_kernels import cli\ncli.main(sys.argv[1:])"
        done = warm_python.run(code, arguments, stdout=None, cwd=tmp_path)
    else:  # the libraries are imported without them, too
        quoted = shlex.join([sys.executable, "-m", "nerve_kernels.cli", *arguments])
        command = ["sh", "-c", f"{quoted} <&- >&- 2>&-"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(written(tmp_path / "out")) == 6
    for name in written(tmp_path / "out"):
        if name.endswith(".png"):
            Image.open(tmp_path / "out" / name).load()
        else:
            json.loads((tmp_path / "out" / name).read_text())
