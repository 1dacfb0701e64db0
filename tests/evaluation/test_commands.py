"""nerve-evaluate and nerve-ablate as processes: under torchrun, and their options, in process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.evaluation.conftest import SETTINGS

from nerve_kernels import cli
from nerve_kernels.evaluation.variants import ablation
from nerve_kernels.segmentation import NerveConfig

SCENES = ["--dataset", "embedded", "--limit", "3", "--device", "cpu"]


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def run(capsys: pytest.CaptureFixture[str], program: Any, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        program([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    return int(leaving.value.code or 0), seen.out, seen.err


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_of_torchrun_count_the_same_as_one_to_the_bit(tmp_path, capsys):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run(
        [*torchrun, "-m", "nerve_kernels.evaluation", *SCENES, "--out", "both"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("mIoU") == 1  # only the first process reports
    code, _, err = run(capsys, cli.evaluate, *SCENES, "--out", tmp_path / "one")
    assert code == 0, err
    one, two = result_in(tmp_path / "one"), result_in(tmp_path / "both")
    assert (one["last_run"]["processes"], two["last_run"]["processes"]) == (1, 2)
    assert one["last_run"]["threads"] == two["last_run"]["threads"] == 1
    assert one["results"] == two["results"]
    assert one["models"] == two["models"]
    assert sum(map(sum, two["results"]["method"]["confusion"])) == 3 * 128 * 128
    # one process goes on where two have been
    code, _, err = run(capsys, cli.evaluate, *SCENES, "--out", tmp_path / "both")
    assert "3 images scored, 3 of them by an earlier run" in err
    assert result_in(tmp_path / "both")["results"] == one["results"]


@pytest.fixture
def tiny(models: Path) -> list[str]:
    return [
        *("--diffusion", str(models / "diffusion"), "--clip", str(models / "clip")),
        *("--config", str(models / "config.json"), "--device", "cpu", "--dataset", "embedded"),
    ]


def test_a_run_leaves_everything_to_read(tiny, tmp_path, capsys):
    code, out, err = run(capsys, cli.evaluate, *tiny, "--limit", 3, "--out", tmp_path / "out")
    assert code == 0, err
    assert "3 images scored, 0 could not be" in err
    assert out.splitlines()[-1] == str(tmp_path / "out" / "report.md")
    result = result_in(tmp_path / "out")
    method = result["results"]["method"]
    assert out.startswith(f"method: mIoU {100 * method['miou']:.2f}, pixel accuracy ")
    assert len(method["confusion"]) == len(result["class_names"]) == 51
    assert set(method["iou"]) <= set(result["class_names"])
    assert result["last_run"]["images_per_second"] > 0
    assert result["last_run"]["peak_memory_bytes"] > 50e6
    report = (tmp_path / "out" / "report.md").read_text()
    for link in ("chart.png", "overlays/best_1.png", "overlays/worst_1.png"):
        assert f"({link})" in report
        with Image.open(tmp_path / "out" / link) as image:
            assert min(image.size) > 100


def test_an_ablation_in_one_pass(tiny, tmp_path, capsys):
    code, out, err = run(capsys, cli.ablate, *tiny, "--limit", 2, "--out", tmp_path / "all")
    assert code == 0, err
    rows = list(result_in(tmp_path / "all")["results"])
    assert rows == list(ablation(NerveConfig(**SETTINGS)))
    assert [line.partition(":")[0] for line in out.splitlines()[:-1]] == rows
    assert (tmp_path / "all" / "chart.png").exists()
    vary = ("--vary", "alpha=[0.1, 0.5]")
    code, out, err = run(capsys, cli.ablate, *tiny, "--limit", 2, *vary, "--out", tmp_path / "alpha")
    assert list(result_in(tmp_path / "alpha")["results"]) == ["method", "alpha=0.1", "alpha=0.5"], err


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--no-walk"], {"walk": False}),
        (["--heads", "uniform", "--steps", "7"], {"criterion": "uniform", "steps": 7}),
        (["--criterion", "information"], {"criterion": "information"}),
        (["--local-only", "--limit-walk"], {"beta": 0.0, "limit_walk": True, "steps": None}),
        (["--global-only", "--seed-mode", "cosine"], {"beta": 1.0, "seed_mode": "cosine"}),
        (["--clip-size", "64", "--clip-window", "32", "--clip-stride", "16"], {"clip_size": 64, "clip_stride": 16}),
        (["--whole-image", "--templates", "short"], {"clip_window": None, "templates": "short"}),
        (["--background", "sky, wall", "--threshold", "0.2"], {"background_words": ["sky", "wall"]}),
        (["--set", "timesteps=[5, 50]", "--set", "noise_seed=3"], {"timesteps": [5, 50], "noise_seed": 3}),
    ],
)
def test_switches_reach_the_config(tiny, tmp_path, capsys, options, settings):
    code, _, err = run(capsys, cli.evaluate, *tiny, "--limit", 1, "--out", tmp_path / "out", *options)
    assert code == 0, err
    config = result_in(tmp_path / "out")["variants"]["method"]
    assert {name: config[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "voc12"], "dataset: expected one of voc21"),
        (["--dataset", "voc21"], "root: expected the folder"),
        (["--dataset", "embedded", "--local-only", "--global-only"], "got both"),
        (["--dataset", "embedded", "--set", "alpha=3"], "alpha: expected a number in [0, 1), got 3"),
        (["--dataset", "embedded", "--set", "alpha=" + "[" * 100_000], "setting: alpha: expected a value, got 100000"),
        (["--dataset", "embedded", "--set", "steps=" + "9" * 5000], "setting: steps: expected a value, got 5000"),
        (["--dataset", "embedded", "--set", "templates=[{}]"], "templates: expected"),
        (["--dataset", "embedded", "--set", 'criterion=[["entropy"]]'], "criterion: expected"),
        (["--dataset", "embedded", "--set", "backend=nope"], "backend: expected one of those that run here"),
        (["--dataset", "embedded", "--vary", 'backend=["nope"]'], "backend: expected one of those that run here"),
        (["--dataset", "embedded", "--vary", "alpha"], "expected field=value"),
        (["--dataset", "embedded", "--limit", "0"], "--limit"),
        (["--dataset", "embedded", "--vocabulary", "own"], "vocabulary: expected 'dataset' or 'image', got 'own'"),
        (["--dataset", "embedded", "--preset", "none"], ", got 'none'"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, cli.evaluate, *options, "--device", "cpu")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_wrong_root_is_told_line_by_line(tmp_path, capsys):
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    code, _, err = run(capsys, cli.evaluate, "--dataset", "voc21", "--root", tmp_path)
    assert code == 2
    lines = [line.strip() for line in err.splitlines()]
    assert "found   VOC2012/JPEGImages" in lines
    assert "missing VOC2012/SegmentationClass" in lines


def test_a_run_of_other_settings_is_not_mixed_in(tiny, tmp_path, capsys):
    assert run(capsys, cli.evaluate, *tiny, "--limit", 1, "--out", tmp_path)[0] == 0
    code, _, err = run(capsys, cli.evaluate, *tiny, "--limit", 1, "--out", tmp_path, "--steps", 9)
    assert code == 2
    assert "holds a run with variants.method.steps = 3, this one has 9" in err
