"""Results of files that have since been replaced are never counted: they are refused by name, or made again."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.small_datasets import Few, scorer_of, voc_of

from nerve_kernels import cli
from nerve_kernels.evaluation import open_dataset
from nerve_kernels.evaluation.file_states import FileState
from nerve_kernels.evaluation.run_folder import _sha256
from nerve_kernels.evaluation.runner import Evaluation, evaluate


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_of(tmp_path / "voc", 5)


def score(pipeline, voc: Path, out: Path, **options) -> Evaluation:
    return evaluate(scorer_of(pipeline, open_dataset("voc21", voc), vocabulary="dataset"), out, **options)


def replace_mask(voc: Path, name: str, label: int) -> None:
    Image.fromarray(np.full((16, 24), label, dtype=np.uint8)).save(voc / f"SegmentationClass/{name}.png")


def replace_image(voc: Path, name: str) -> None:
    Image.new("RGB", (24, 16), "red").save(voc / f"JPEGImages/{name}.jpg")


def test_changed_files_are_refused_by_name_and_redone_on_demand(pipeline, voc, tmp_path):
    before = score(pipeline, voc, tmp_path / "out")
    replace_mask(voc, "0001", 7)
    replace_image(voc, "0003")
    with pytest.raises(ValueError, match=r"out: .* got changed or missing ones of 0001, 0003; .*--redo-changed"):
        score(pipeline, voc, tmp_path / "out")
    computed: list[int] = []
    redone = score(pipeline, voc, tmp_path / "out", redo_changed=True, on_image=lambda index, _: computed.append(index))
    assert (computed, redone.resumed, redone.images) == ([1, 3], 3, 5)
    fresh = score(pipeline, voc, tmp_path / "fresh")
    assert torch.equal(redone.confusions["method"], fresh.confusions["method"])
    assert not torch.equal(before.confusions["method"], fresh.confusions["method"])
    # the old records are still in the folder, and are passed over from now on
    again = score(pipeline, voc, tmp_path / "out")
    assert (again.resumed, again.scores) == (5, fresh.scores)


def test_the_command_refuses_in_one_line_and_has_the_switches(models, voc, tmp_path, capsys):
    options = ["--dataset", "voc21", "--root", voc, "--out", tmp_path / "out", "--device", "cpu", "--diffusion"]
    options += [models / "diffusion", "--clip", models / "clip", "--config", models / "config.json"]

    def run(*more: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as leaving:
            cli.evaluate([str(option) for option in [*options, *more]])
        return int(leaving.value.code or 0), capsys.readouterr().err

    assert run()[0] == 0
    path = voc / "SegmentationClass/0001.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")  # readable all the same
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run()[0] == 0
    code, err = run("--verify")
    assert code == 2
    assert re.fullmatch(r"nerve-evaluate: .*out: .* missing ones of 0001; .*\n", err.splitlines(keepends=True)[-1])
    code, err = run("--verify", "--redo-changed")
    assert code == 0
    assert "5 images scored, 4 of them by an earlier run" in err


def test_three_are_named_and_the_rest_counted(pipeline, voc, tmp_path):
    score(pipeline, voc, tmp_path / "out")
    for number in range(5):
        replace_mask(voc, f"000{number}", 3)
    with pytest.raises(ValueError, match="0000, 0001, 0002 and 2 more;"):
        score(pipeline, voc, tmp_path / "out")


def test_a_file_that_is_gone_has_changed(pipeline, voc, tmp_path):
    score(pipeline, voc, tmp_path / "out")
    (voc / "JPEGImages/0002.jpg").unlink()
    with pytest.raises(ValueError, match="missing ones of 0002;"):
        score(pipeline, voc, tmp_path / "out")
    without = score(pipeline, voc, tmp_path / "out", redo_changed=True)
    assert (without.images, [name for name, _ in without.failures]) == (4, ["0002"])


def test_only_what_is_scored_is_looked_at(pipeline, voc, tmp_path):
    score(pipeline, voc, tmp_path / "out")
    replace_mask(voc, "0004", 7)
    assert score(pipeline, voc, tmp_path / "out", limit=2).resumed == 2  # 0 and 2


def test_a_copy_of_the_same_bytes_has_not_changed(pipeline, voc, tmp_path):
    whole = score(pipeline, voc, tmp_path / "out")
    for path in (voc / "JPEGImages").iterdir():
        os.utime(path, (1, 1))
    again = score(pipeline, voc, tmp_path / "out")
    assert (again.resumed, again.unchecked, again.scores) == (5, 0, whole.scores)


def test_verify_finds_what_keeps_size_and_time(pipeline, voc, tmp_path):
    score(pipeline, voc, tmp_path / "out")
    path = voc / "SegmentationClass/0001.png"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert score(pipeline, voc, tmp_path / "out").resumed == 5
    with pytest.raises(ValueError, match="changed or missing ones of 0001;"):
        score(pipeline, voc, tmp_path / "out", verify=True)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a file"):
        FileState.of(tmp_path / "pipe")
    assert not FileState(0, 0, "").is_unchanged(tmp_path / "pipe", verify=True)


def test_a_folder_of_the_first_version_is_counted_and_said_to_be_unchecked(pipeline, voc, tmp_path):
    """Its shards are lists of (index, counts) without a checksum."""
    whole = score(pipeline, voc, tmp_path / "out")
    (shard,) = (tmp_path / "out/shards").iterdir()
    rows = json.loads(shard.read_text())["rows"]
    shard.write_text(json.dumps([row[:2] for row in rows]))
    replace_mask(voc, "0001", 7)
    again = score(pipeline, voc, tmp_path / "out")
    assert (again.resumed, again.unchecked) == (5, 5)
    assert torch.equal(again.confusions["method"], whole.confusions["method"])


def test_images_that_ship_with_the_package_have_no_files_to_look_at(pipeline, tmp_path):
    evaluate(scorer_of(pipeline, Few(2)), tmp_path)
    again = evaluate(scorer_of(pipeline, Few(2)), tmp_path, verify=True)
    assert (again.resumed, again.unchecked) == (2, 0)


DAMAGED_ROWS = {
    "an index past the last image": lambda row: [1, *row[1:]],
    "a negative index": lambda row: [-1, *row[1:]],
    "an index that is a fraction": lambda row: [0.5, *row[1:]],
    "an index that is a whole fraction": lambda row: [0.0, *row[1:]],
    "an index that is true": lambda row: [False, *row[1:]],
    "a huge cell": lambda row: [0, [[[10**30, 1]]], row[2]],
    "a cell past the last": lambda row: [0, [[[51 * 51, 1]]], row[2]],
    "a negative cell": lambda row: [0, [[[-1, 1]]], row[2]],
    "a huge count": lambda row: [0, [[[0, 2**62]]], row[2]],
    "a negative count": lambda row: [0, [[[0, -1]]], row[2]],
    "a count that is a fraction": lambda row: [0, [[[0, 1.5]]], row[2]],
    "a cell that is there twice": lambda row: [0, [[[0, 1], [0, 2]]], row[2]],
    "counts of two variants": lambda row: [0, row[1] * 2, row[2]],
    "counts that are none": lambda row: [0, 3, row[2]],
    "no counts": lambda row: [0],
    "too many parts": lambda row: [*row, 1],
    "states that are none": lambda row: [*row[:2], [[1]]],
}


@pytest.mark.parametrize("name", DAMAGED_ROWS)
def test_a_damaged_record_is_refused_with_the_shard_to_delete(pipeline, tmp_path, name):
    evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    rows = json.dumps([DAMAGED_ROWS[name](row) for row in json.loads(shard.read_text())["rows"]], separators=(",", ":"))
    shard.write_text(f'{{"sha256":"{_sha256(rows)}","rows":{rows}}}')
    with pytest.raises(ValueError, match=rf"out: the shard {shard} is damaged \(.*\); delete it and run again"):
        evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    shard.unlink()
    assert evaluate(scorer_of(pipeline, Few(1)), tmp_path).resumed == 0


def test_variants_that_counted_different_pixels_are_damage(pipeline, tmp_path):
    variants = {"one": pipeline.config, "two": pipeline.config.replace(alpha=0.5)}
    evaluate(scorer_of(pipeline, Few(1), variants), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    (row,) = json.loads(shard.read_text())["rows"]
    row[1][1][0][1] += 1
    shard.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=r"is damaged .*different numbers of pixels"):
        evaluate(scorer_of(pipeline, Few(1), variants), tmp_path)


@pytest.mark.parametrize("content", [b"", b"3", b"null", b'{"rows":[]}', b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_shard_that_is_none_is_refused(pipeline, tmp_path, content):
    evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"out: the shard {shard} is damaged"):
        evaluate(scorer_of(pipeline, Few(1)), tmp_path)


def test_one_changed_digit_is_damage(pipeline, tmp_path):
    """Right in form, and still not what was counted: the checksum tells."""
    evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    (shard,) = (tmp_path / "shards").iterdir()
    text = shard.read_text()
    at = text.index('"rows":[[0,[[[') + len('"rows":[[0,[[[')
    shard.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    with pytest.raises(ValueError, match=r"is damaged \(its checksum differs"):
        evaluate(scorer_of(pipeline, Few(1)), tmp_path)


def test_a_damaged_description_is_named(pipeline, tmp_path):
    evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"out: the description .*run\.json is damaged .*delete this folder"):
        evaluate(scorer_of(pipeline, Few(1)), tmp_path)
    shutil.rmtree(tmp_path)
    assert evaluate(scorer_of(pipeline, Few(1)), tmp_path).images == 1
