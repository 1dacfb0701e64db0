"""``nerve-segment --format``: which files it writes, and which it leaves alone."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image
from tests.cli.command_line import run_main, written

pytest.importorskip("pycocotools", reason="needs nerve_kernels[formats]")
pytest.importorskip("skimage", reason="needs nerve_kernels[formats]")


def test_annotations_say_what_the_image_of_labels_says(models, images, tmp_path, capsys):
    from nerve_kernels.segmentation.annotations.run_lengths import decode

    (images / "deeper").mkdir()
    (images / "tall.jpg").rename(images / "deeper/tall.jpg")
    files = (images / "wide.png", images / "deeper/tall.jpg")
    arguments = (*files, "-l", "cat, dog", "-o", tmp_path / "out", *models, "--format", "png,coco,labelme,yolo")
    code, out, _ = run_main(capsys, *arguments)
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "out" / f"{stem}_overlay.png") for stem in ("wide", "tall")]
    assert written(tmp_path / "out") == [
        "coco.json",
        "labelme",
        "tall_labels.png",
        "tall_overlay.png",
        "wide_labels.png",
        "wide_overlay.png",
        "yolo",
    ]
    assert (tmp_path / "out/labelme/deeper/tall.json").is_file()
    assert (tmp_path / "out/yolo/labels/deeper/tall.txt").is_file()
    content = json.loads((tmp_path / "out/coco.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["wide.png", "deeper/tall.jpg"]
    for image, stem in zip(content["images"], ("wide", "tall"), strict=True):
        found = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                found[decode(one["segmentation"])] = one["category_id"]
        with Image.open(tmp_path / "out" / f"{stem}_labels.png") as indexed:
            assert np.array_equal(found, np.asarray(indexed))


def test_only_what_is_asked_for_is_written(models, images, tmp_path, capsys):
    arguments = (images / "wide.png", "-l", "cat, dog", "-o", tmp_path / "out", *models)
    code, out, _ = run_main(capsys, *arguments, "--format", "coco")
    assert (code, out) == (0, f"{tmp_path / 'out/coco.json'}\n")
    assert written(tmp_path / "out") == ["coco.json"]
    code, out, _ = run_main(capsys, *arguments, "--format", "json", "--json")
    assert written(tmp_path / "out") == ["coco.json", "wide.json"]
    assert json.loads(out)["files"] == {"summary": str(tmp_path / "out/wide.json")}


def test_annotations_that_are_there_are_not_replaced(models, images, tmp_path, capsys):
    arguments = (images / "wide.png", "-l", "cat, dog", "-o", tmp_path / "out", *models, "--format", "png,json,labelme")
    assert run_main(capsys, *arguments)[0] == 0
    corrected = tmp_path / "out/labelme/wide.json"
    corrected.write_text("{}")
    code, _, err = run_main(capsys, *arguments)
    assert code == 2
    assert f"--out: {corrected} is there and may have been corrected by hand; choose another folder" in err
    assert corrected.read_text() == "{}"
    assert run_main(capsys, *arguments, "--overwrite")[0] == 0
    assert "shapes" in json.loads(corrected.read_text())


def test_two_images_for_one_file_of_annotations(models, images, tmp_path, capsys):
    (images / "tall.jpg").rename(images / "wide.jpg")
    arguments = (images, "-l", "cat, dog", "-o", tmp_path / "out", *models, "--format")
    code, _, err = run_main(capsys, *arguments, "yolo")
    assert code == 2
    assert f"two images would go to {tmp_path / 'out/yolo/labels/wide.txt'}; rename one of them" in err
    assert written(tmp_path / "out") == []
    assert run_main(capsys, *arguments, "coco")[0] == 0


@pytest.mark.parametrize("formats", ["voc", "png, ,json5", "", " , "])
def test_unknown_formats_are_refused(models, images, tmp_path, capsys, formats):
    code, _, err = run_main(capsys, images, "-l", "cat, dog", "-o", tmp_path / "out", *models, "--format", formats)
    assert code == 2
    assert err.count("\n") == 1
    assert written(tmp_path / "out") == []


def test_without_the_libraries(models, images, tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pycocotools" else find_spec(name, *more)
    )
    arguments = (images, "-l", "cat, dog", "-o", tmp_path / "out", *models)
    code, _, err = run_main(capsys, *arguments, "--format", "coco")
    assert code == 1
    assert err == (
        "nerve-segment: pycocotools is not installed: writing annotations needs it. "
        'Install it with: pip install "nerve_kernels[formats]"\n'
    )
    assert written(tmp_path / "out") == []
    assert run_main(capsys, *arguments)[0] == 0
