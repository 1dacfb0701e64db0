"""Features in bulk, and new words over them: the rows are those of segmenting anew."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")

import pyarrow as pa
import pyarrow.parquet as pq
from tests.bulk.test_bulk import DEMO, LABELS, run_main

from nerve_kernels.bulk import Segmenter
from nerve_kernels.bulk.destination import Destination
from nerve_kernels.bulk.features import Encoder, Querier, stored_features
from nerve_kernels.bulk.rows import FEATURES_SCHEMA, SCHEMA
from nerve_kernels.segmentation.presets import PRESETS

CONFIG = PRESETS["embedded"].config
SOURCES = np.array([str(DEMO / "scene_noto_1.png"), str(DEMO / "labels.json"), str(DEMO / "scene_noto_2.png")])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run of ``nerve-bulk --features`` without Ray."""
    found = Destination(str(tmp_path_factory.mktemp("bulk") / "kept"))
    models = {"preset": "embedded", "diffusion": None, "clip": None, "autoencoder": None, "dtype": None}
    found.open({"features": True, "config": json.loads(CONFIG.to_json()), "models": models})
    table = Encoder(found.place, device="cpu", threads=1)({"path": SOURCES})
    Path(found.rows).mkdir()
    pq.write_table(table, Path(found.rows) / "0.parquet")
    return found


def asked(stored: Destination, labels: str, **more: object) -> list[dict]:
    entries = pa.Table.from_pylist([one._asdict() for one in stored_features(stored)])
    batch = {name: entries[name].to_numpy() for name in entries.column_names}
    options = {"preset": "embedded", "config": CONFIG, "device": "cpu", "threads": 1, **more}
    table = Querier(labels, features=stored.place, **options)(batch)
    assert table.schema == SCHEMA
    return table.to_pylist()


def test_a_row_says_where_features_are(stored):
    table = stored.table().to_table()
    assert table.schema == FEATURES_SCHEMA
    good, bad, _ = table.to_pylist()
    file = Path(stored.path) / good["file"]
    content = file.read_bytes()
    assert (good["bytes"], good["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert good["file"].startswith("features/")
    assert (bad["file"], bad["error"]) == (None, f"{SOURCES[1]}: not an image")
    assert sorted(Path(stored.path).glob("features/*/*")) == sorted(
        Path(stored.path) / row["file"] for row in table.to_pylist() if row["file"]
    )


@pytest.mark.parametrize("labels", [LABELS, "background, animal, plant"])
def test_words_over_stored_features_give_the_rows_of_segmenting_anew(stored, labels):
    anew = Segmenter(labels, device="cpu", threads=1)({"path": SOURCES}).to_pylist()
    found = asked(stored, labels)
    for one, other in zip(anew, found, strict=True):
        assert {**one, "seconds": None} == {**other, "seconds": None}
    assert {"read the image", "random walk"} <= dict(found[0]["seconds"]).keys()
    assert "Stable Diffusion" not in dict(found[0]["seconds"])


def test_features_that_are_damaged_or_gone_are_rows_with_errors(stored, tmp_path):
    import shutil

    copy = Destination(str(shutil.copytree(stored.path, tmp_path / "copy")))
    first, _, last = stored.table().to_table().to_pylist()
    file = tmp_path / "copy" / first["file"]
    file.write_bytes(file.read_bytes()[:-7])
    (tmp_path / "copy" / last["file"]).unlink()
    found = asked(copy, LABELS)
    assert "is no safetensors file" in found[0]["error"]
    assert found[1]["error"] == f"{SOURCES[1]}: not an image"
    assert found[2]["error"].endswith("is no file")


def test_features_on_another_file_system_are_read(stored):
    from pyarrow import fs

    class Remote(Destination):
        def __init__(self, place: str) -> None:
            super().__init__(place)
            self.filesystem = fs.SubTreeFileSystem("/", fs.LocalFileSystem())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nerve_kernels.bulk.features.Destination", Remote)
        found = asked(stored, LABELS)
    assert [row["labels"] for row in found] == [row["labels"] for row in asked(stored, LABELS)]
    assert found[0]["labels"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["query", "KEPT", "-l", "cat, dog", "--set", "window=5"],
            "--set window: expected 11, which the features were",
        ),
        (["query", "KEPT", "-l", "cat, dog", "--set", "clip_size=64"], "--set clip_size: expected"),
        (["query", "KEPT", "-l", "cat"], "label"),
        (["query", DEMO, "-l", "cat, dog"], "FEATURES: expected the destination of nerve-bulk --features, got"),
        ([DEMO, "--features", "-l", "cat, dog"], "--labels, --features: expected one of them, got both"),
        ([DEMO], "--labels, --features: expected one of them, got none"),
    ],
)
def test_wrong_use_is_one_line_before_ray_is_started(stored, arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ray.init", lambda *given, **settings: pytest.fail("Ray was started"))
    given = [stored.place if one == "KEPT" else one for one in arguments]
    code, _, err = run_main(capsys, *given, "-o", tmp_path / "out")
    assert (code, words in err.splitlines()[-1]) == (2, True), err


def test_features_are_not_exported(stored, tmp_path, capsys):
    code, _, err = run_main(capsys, "export", stored.place, "--to", tmp_path / "annotations")
    assert (code, "RUN: expected masks, got features" in err) == (2, True)
