"""Random damage to the folder of a run: what is counted is what was scored, everything else is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.fuzz.judging import FUZZ

from nerve_kernels.evaluation.file_states import FileState
from nerve_kernels.evaluation.run_folder import ImageRecord, RunFolder, RunShape, _sha256
from nerve_kernels.evaluation.runner import Tally

SHAPE = RunShape(images=4, variants=2, classes=3)
DESCRIPTION = {"dataset": "made up", "variants": {"one": {"alpha": 0.5, "window": [3, 3]}, "two": {"alpha": 0.9}}}
RECORDS = [
    ImageRecord(0, (((0, 5), (4, 7)), ((1, 12),)), (FileState(10, 20, "ab"), FileState(30, 40, "cd"))),
    ImageRecord(2, (((8, 1),), ((8, 1),)), ()),
    ImageRecord(3, ((), ()), None),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def written(folder: Path) -> Path:
    """A folder of one shard, as a run leaves it."""
    shutil.rmtree(folder, ignore_errors=True)
    run = RunFolder(folder, DESCRIPTION, SHAPE, digest_of_weights=str, save_every=1e9)
    for record in RECORDS:
        run.add(record)
    run.save()
    (shard,) = (folder / "shards").iterdir()
    return shard


def read(folder: Path) -> list[ImageRecord] | None:
    """The records; None where a file was refused as it should be."""
    try:
        return list(RunFolder(folder, DESCRIPTION, SHAPE, digest_of_weights=str, save_every=1e9).records())
    except ValueError as error:
        assert str(error).startswith("out: ")
        assert str(folder) in str(error)
        assert "delete" in str(error)
        return None


def test_a_whole_folder_is_read(folder):
    written(folder)
    assert read(folder) == RECORDS


@FUZZ
@given(st.data())
def test_a_damaged_shard_is_refused_or_means_the_same(folder, data):
    shard = written(folder)
    shard.write_bytes(damaged_bytes(data.draw, shard.read_bytes()))
    assert read(folder) in (None, RECORDS)


@FUZZ
@given(st.data())
def test_a_damaged_description_is_refused_or_means_the_same(folder, data):
    written(folder)
    file = folder / "run.json"
    file.write_bytes(damaged_bytes(data.draw, file.read_bytes()))
    assert read(folder) in (None, RECORDS)


@FUZZ
@given(st.data(), st.booleans())
def test_damaged_records_are_refused_or_can_be_counted(folder, data, with_checksum):
    """Also of the first version, and with a checksum that is right: then every number must be within its bounds."""
    shard = written(folder)
    rows: Any = damaged_json(data.draw, json.loads(shard.read_text())["rows"])
    text = json.dumps(rows, separators=(",", ":"))
    shard.write_text(f'{{"sha256":"{_sha256(text)}","rows":{text}}}' if with_checksum else text)
    records = read(folder)
    if records is None:
        return
    tally = Tally(("a", "b", "c"), 2)
    for record in records:
        tally.add(record)
    assert tally.images == len(records)
    assert (tally.counts >= 0).all()
    assert tally.counts[0].sum() == tally.counts[1].sum()


@FUZZ
@given(st.binary(max_size=200), st.sampled_from(["shard", "run.json"]))
def test_files_of_anything_are_refused(folder, content, which):
    shard = written(folder)
    (shard if which == "shard" else folder / "run.json").write_bytes(content)
    assert read(folder) in (None, [])  # an empty list is a shard of the first version
