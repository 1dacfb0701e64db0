"""Bulk without Ray's help: sources, destinations, rows, exports, and what the command refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerve_kernels import cli

pytest.importorskip("ray", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")

DEMO = Path(__file__).parents[2] / "src/nerve_kernels/segmentation/embedded/demo"
LABELS = "background, cat, mushroom, house, balloon"


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.bulk([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    return int(leaving.value.code or 0), seen.out, seen.err


@pytest.fixture(scope="module")
def segmented():
    """A batch as Ray Data hands it on, and its rows."""
    import pyarrow as pa

    from nerve_kernels.bulk import Segmenter
    from nerve_kernels.bulk.reading import read_images

    sources = np.array([str(DEMO / "scene_noto_1.png"), str(DEMO / "labels.json")], dtype=object)
    segmenter = Segmenter(LABELS, device="cpu", threads=1)
    return segmenter, sources, segmenter(*read_images(pa.table({"id": sources, "source": sources})))


@pytest.fixture
def destination(segmented, tmp_path):
    """A run folder with rows, without a run."""
    import pyarrow.parquet as pq

    from nerve_kernels.bulk.destination import Destination

    found = Destination(str(tmp_path / "masks"))
    found.open({"labels": LABELS})
    (tmp_path / "masks/rows").mkdir()
    pq.write_table(segmented[2], tmp_path / "masks/rows/0.parquet")
    return found


def test_a_row_holds_what_the_pipeline_says(segmented):
    from nerve_kernels.bulk.rows import SCHEMA
    from nerve_kernels.segmentation import NervePipeline
    from nerve_kernels.segmentation.annotations.run_lengths import decode

    _, sources, table = segmented
    assert table.schema == SCHEMA
    good, bad = table.to_pylist()
    expected = NervePipeline.from_preset(device="cpu")(sources[0], LABELS)
    masks = {one["label"]: decode(one["rle"]) for one in good["labels"]}
    assert masks.keys() == expected.masks().keys() != set()
    assert all(np.array_equal(masks[label], mask) for label, mask in expected.masks().items())
    said = {one["label"]: one for one in expected.summary()["labels"]}
    for one in good["labels"]:
        assert one["area"] == said[one["label"]]["area_pixels"]
        assert one["mean_probability"] == pytest.approx(said[one["label"]]["mean_probability_inside"], rel=1e-6)
    assert (good["height"], good["width"], good["error"]) == (expected.image.height, expected.image.width, None)
    assert dict(good["seconds"])["random walk"] > 0
    assert (bad["id"], bad["labels"], bad["error"]) == (sources[1], None, f"{sources[1]}: not an image")
    assert good["weights"] == bad["weights"]


def test_batches_of_arrays_bytes_and_paths_give_the_same(segmented):
    segmenter, sources, table = segmented
    path = Path(sources[0])
    ways = [
        {"path": np.array([str(path)])},
        {"source": np.array([str(path)]), "image": np.array([path.read_bytes()], dtype=object)},
        {"path": np.array([str(path)]), "image": np.asarray(Image.open(path).convert("RGB"))[None]},
    ]
    for batch in ways:
        (row,) = segmenter(batch).to_pylist()
        assert (row["id"], row["labels"]) == (str(path), table.to_pylist()[0]["labels"])


def test_an_error_of_one_image_is_its_row(segmented, monkeypatch):
    segmenter, sources, _ = segmented

    def full(*arguments: object, **more: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("nerve_kernels.segmentation.pipeline.NervePipeline.segment", full)
    (row,) = segmenter({"path": sources[:1]}).to_pylist()
    assert row["error"] == "out of memory (no room)"


def test_models_with_other_weights_are_refused(segmented):
    from nerve_kernels.bulk import Segmenter

    with pytest.raises(ValueError, match="expected rows that these models made, with the digest"):
        Segmenter(LABELS, device="cpu", weights="other")


def test_only_the_newest_command_writes(destination):
    from nerve_kernels.bulk.destination import TakenOverError

    older = destination.take_over()
    assert older.get_filename_for_task("run", 3) == "run_000003.parquet"
    newer = destination.take_over()
    with pytest.raises(TakenOverError, match="another command writes to this destination now"):
        older.get_filename_for_task("run", 4)
    assert newer.get_filename_for_task("run", 4) == "run_000004.parquet"


def test_a_destination_is_refused_where_it_is_not_this_runs(destination, tmp_path):
    from nerve_kernels.bulk.destination import Destination

    destination.open({"labels": LABELS})
    with pytest.raises(ValueError, match="holds a run with labels = "):
        Destination(str(tmp_path / "masks")).open({"labels": "cat, dog"})
    with pytest.raises(ValueError, match=r"holds masks, which is no run of this command"):
        Destination(str(tmp_path)).open({})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        Destination(str(tmp_path / "file")).open({})
    with pytest.raises(ValueError, match="out: cannot write to"):
        Destination(str(tmp_path / "file" / "deeper")).open({})
    (tmp_path / "masks/run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        destination.open({"labels": LABELS})
    (tmp_path / "masks/rows/0.parquet").unlink()  # nothing was made with it, so it binds nobody
    destination.open({"labels": "cat, dog"})
    destination.open({"labels": "cat, dog"})
    assert json.loads((tmp_path / "masks/run.json").read_text()) == {"labels": "cat, dog"}


def test_the_summary_counts_rows(destination, segmented):
    from nerve_kernels.bulk.summary import Summary

    found = Summary.of(destination)
    assert (found.rows, found.distinct, found.failures) == (2, 2, 1)
    assert found.examples == ((segmented[1][1], f"{segmented[1][1]}: not an image"),)
    assert found.seconds["random walk"] > 0
    assert destination.weights() == segmented[2]["weights"][0].as_py()


def test_rows_are_exported(destination, segmented, tmp_path, capsys):
    from nerve_kernels.segmentation.annotations.run_lengths import decode

    arguments = ("export", destination.place, "--to", tmp_path / "annotations", "--format")
    code, out, err = run_main(capsys, *arguments, "coco,labelme,yolo")
    assert (code, out, err) == (0, f"{tmp_path / 'annotations'}\n", "1 images\n")
    content = json.loads((tmp_path / "annotations/coco.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["scene_noto_1.png"]
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = {names[one["category_id"]]: decode(one["segmentation"]) for one in content["annotations"]}
    for one in segmented[2].to_pylist()[0]["labels"]:
        assert np.array_equal(found[one["label"]], decode(one["rle"]))
    assert (tmp_path / "annotations/labelme/scene_noto_1.json").is_file()
    assert (tmp_path / "annotations/yolo/labels/scene_noto_1.txt").is_file()
    assert run_main(capsys, *arguments, "coco")[0] == 2  # the folder has something in it by now


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((DEMO, "-l", "cat, dog", "--set", "window=4"), "window"),
        ((DEMO, "-l", "cat"), "label"),
        ((DEMO, "-l", "cat, dog", "--preset", "no"), "preset"),
        (("absent", "-l", "cat, dog"), "SOURCE: absent: expected images, got none"),
        ((DEMO, DEMO / "*.png", "-l", "cat, dog"), "SOURCE: expected each image once, got"),
        (("export",), "RUN"),
    ],
)
def test_wrong_use_is_one_line_before_ray_is_started(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ray.init", lambda *given, **settings: pytest.fail("Ray was started"))
    given = arguments if arguments[0] == "export" else (*arguments, "-o", tmp_path / "out")
    code, _, err = run_main(capsys, *given)
    assert code == 2
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_without_ray(capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find_spec(name, *more)
    )
    assert run_main(capsys, DEMO, "-l", "cat, dog", "-o", "out") == (
        1,
        "",
        'nerve-bulk: ray is not installed: nerve-bulk needs it. Install it with: pip install "nerve_kernels[bulk]"\n',
    )


def test_importing_the_package_imports_no_ray():
    import subprocess

    code = "import sys, nerve_kernels, nerve_kernels.bulk; print('ray' in sys.modules, 'pyarrow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "False False\n"
