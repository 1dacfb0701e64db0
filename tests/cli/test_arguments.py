"""Arguments and files that cannot be used: one line for each, before any model runs, and the rest goes on."""

from __future__ import annotations

import codecs
import errno
import os
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.command_line import run_main, written

from nerve_kernels import cli
from nerve_kernels.cli.inputs import find_images, labels_beside
from nerve_kernels.segmentation import NerveConfig

LONG = "n" * 300


def refusing_to_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for one without permission; tests may run as root, whom nothing is refused."""
    scandir, listdir = os.scandir, os.listdir

    def refuse(reader):
        def read(path="."):
            if os.fspath(path) == os.fspath(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return reader(path)

        return read

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(os, "listdir", refuse(listdir))


def test_one_bad_argument_does_not_stop_the_rest(models, images, tmp_path, capsys, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir()
    refusing_to_read(locked, monkeypatch)
    bad = (f"{tmp_path}/{LONG}.png", locked, f"~{LONG}/x.png", f"{tmp_path}/{LONG}*.png", f"{images}/wide.png/x.png")
    code, out, err = run_main(capsys, *bad, images, "-q", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{tmp_path}/{LONG}.png: File name too long",
        f"{locked}: Permission denied",
        f"~{LONG}/x.png: Could not determine home directory.",
        f"{tmp_path}/{LONG}*.png: File name too long",
        f"{images}/wide.png/x.png: no such file or folder",
    ]
    assert len(written(tmp_path / "out")) == 6


def test_a_result_whose_name_would_be_too_long_does_not_stop_the_rest(models, images, tmp_path, capsys):
    long = tmp_path / f"{'n' * 250}.png"
    Image.new("RGB", (16, 16)).save(long)
    options = ("-q", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    code, _, err = run_main(capsys, long, images / "wide.png", *options)
    assert code == 1
    assert err == f"{tmp_path / 'out' / long.stem}_overlay.png: cannot be written: File name too long\n"
    assert written(tmp_path / "out") == ["wide.json", "wide_labels.png", "wide_overlay.png"]


def test_find_images_says_why(tmp_path, monkeypatch):
    refusing_to_read(tmp_path, monkeypatch)
    assert find_images([str(tmp_path)]) == ([], [f"{tmp_path}: Permission denied"])


@pytest.mark.parametrize("name", ["labels.txt", "a.txt", "labels.json"])
def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path, name):
    text = '{"images": [{"file": "a.png", "labels": "cat, dog"}]}' if name.endswith("json") else "cat, dog"
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
    assert labels_beside(tmp_path / "a.png") == "cat, dog"


def test_a_byte_order_mark_is_no_part_of_settings(tmp_path):
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + b'{"alpha": 0.25}')
    assert NerveConfig.load(tmp_path / "config.json").alpha == 0.25


def test_settings_that_never_end_are_not_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.json").write_text(" " * 2**21)
    for file in ("/dev/zero", tmp_path / "pipe", tmp_path / "large.json", tmp_path):
        code, _, err = run_main(capsys, "--config", file, "--save-config", tmp_path / "again.json")
        assert (code, err.count("\n")) == (2, 1)
        assert f"config: expected a JSON file of at most 1 MB, got {file}" in err
    assert not (tmp_path / "again.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-every", "nan"], "save_every: expected seconds, 0 or more, got nan"),
        (["--save-every", "-1"], "save_every: expected seconds, 0 or more, got -1.0"),
        (["--workers", "-1"], "--workers"),
        (["--config", "/dev/zero"], "config: expected a JSON file of at most 1 MB, got /dev/zero"),
    ],
)
def test_options_of_an_evaluation_are_refused_before_any_model_is_loaded(capsys, monkeypatch, options, message):
    def loaded(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("nerve_kernels.cli.evaluate_command.load", loaded)
    with pytest.raises(SystemExit) as leaving:
        cli.evaluate(["--dataset", "embedded", "--device", "cpu", *options])
    assert leaving.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
