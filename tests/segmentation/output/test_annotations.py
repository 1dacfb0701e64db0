"""Masks in the formats of annotation tools: what a tool reads from a file is the mask that was written."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from nerve_kernels.segmentation import NervePipeline, Segmentation
from nerve_kernels.segmentation.annotations.formats import Annotations

pycocotools = pytest.importorskip("pycocotools", reason="needs nerve_kernels[formats]")
pytest.importorskip("skimage", reason="needs nerve_kernels[formats]")

DEMO = Path(__file__).parents[3] / "src/nerve_kernels/segmentation/embedded/demo"
MIN_IOU = 0.98


def segmentation_of(label_map: np.ndarray, labels: tuple[str, ...], background: int | None = None) -> Segmentation:
    height, width = label_map.shape
    planes = torch.full((len(labels), 2, 2), 1 / len(labels))
    return Segmentation(Image.new("RGB", (width, height)), labels, torch.from_numpy(label_map), planes, background)


def difficult_masks() -> np.ndarray:
    """Holes, islands in holes, parts that touch at corners, single pixels and borders."""
    label_map = np.full((40, 60), -1)
    label_map[0:20, 0:30] = 0
    label_map[4:16, 4:24] = 1
    label_map[8:11, 8:14] = 0
    label_map[30, 50] = 1
    label_map[31, 51] = 1
    label_map[39, 0:60:2] = 0
    label_map[22:28, 40:60] = 1
    return label_map


@pytest.fixture(scope="module")
def demo_scenes() -> dict[str, Segmentation]:
    labels = {one["file"]: one["labels"] for one in json.loads((DEMO / "labels.json").read_text())["images"]}
    pipeline = NervePipeline.from_preset()
    return {file: pipeline(DEMO / file, words) for file, words in labels.items()}


def write(segmentations: dict[str, Segmentation], folder: Path, *formats: str) -> list[str]:
    labels = list(
        dict.fromkeys(label for one in segmentations.values() for label in one.labels if label != "background")
    )
    annotations = Annotations(formats, folder, labels)
    with annotations.closing():
        for name, one in segmentations.items():
            annotations.add(one, str(folder / name), name)
    return labels


def label_map_of(masks: dict[str, np.ndarray], like: Segmentation) -> np.ndarray:
    """What the masks say, with the background where there is none."""
    found = np.full(like.label_map.shape, -1 if like.background is None else like.background)
    for label, mask in masks.items():
        found[mask] = like.labels.index(label)
    return found


def read_coco(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Through the library's own reader."""
    from pycocotools.coco import COCO

    coco = COCO(path)
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    return {
        image["file_name"]: {
            names[one["category_id"]]: coco.annToMask(one).astype(bool)
            for one in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        }
        for image in coco.loadImgs(coco.getImgIds())
    }


def read_labelme(path: Path) -> dict[str, np.ndarray]:
    """As labelme does: the mask lies in its box, whose corners count."""
    content = json.loads(path.read_text())
    found = {}
    for shape in content["shapes"]:
        assert shape["shape_type"] == "mask"
        (left, top), (right, bottom) = shape["points"]
        mask = np.zeros((content["imageHeight"], content["imageWidth"]), dtype=bool)
        mask[top : bottom + 1, left : right + 1] = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        found[shape["label"]] = mask
    return found


def read_yolo(path: Path, labels: list[str], size: tuple[int, int], *, by_pillow: bool) -> dict[str, np.ndarray]:
    """Filled where pixels' centres are, or as a drawing program does, which also draws the outline."""
    from skimage.draw import polygon2mask

    found = {}
    for line in path.read_text().splitlines():
        number, *values = line.split()
        points = np.array(values, dtype=float).reshape(-1, 2) * (size[1], size[0])
        if by_pillow:
            image = Image.new("1", (size[1], size[0]))
            ImageDraw.Draw(image).polygon([tuple(point) for point in points.astype(int)], fill=1)
            found[labels[int(number)]] = np.asarray(image)
        else:
            found[labels[int(number)]] = polygon2mask(size, points[:, ::-1] - 0.5)
    return found


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_coco_gives_back_the_same_mask(demo_scenes, tmp_path):
    difficult = segmentation_of(difficult_masks(), ("cat", "dog"))
    all_of_them = {**demo_scenes, "a/difficult.png": difficult}
    write(all_of_them, tmp_path, "coco")
    found = read_coco(tmp_path / "coco.json")
    assert list(found) == list(all_of_them)
    for name, one in all_of_them.items():
        assert np.array_equal(label_map_of(found[name], one), one.label_map.numpy())


def test_what_coco_says_of_a_mask_is_so(tmp_path):
    write({"x.png": segmentation_of(difficult_masks(), ("cat", "dog"))}, tmp_path, "coco")
    content = json.loads((tmp_path / "coco.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (image,) = content["images"]
    assert (image["file_name"], image["width"], image["height"]) == ("x.png", 60, 40)
    cat, dog = content["annotations"]
    assert (cat["area"], dog["area"]) == (int((difficult_masks() == 0).sum()), int((difficult_masks() == 1).sum()))
    assert (cat["bbox"], dog["bbox"]) == ([0, 0, 59, 40], [4, 4, 56, 28])


def test_labelme_gives_back_the_same_mask(demo_scenes, tmp_path):
    all_of_them = {**demo_scenes, "a/difficult.png": segmentation_of(difficult_masks(), ("cat", "dog"))}
    write(all_of_them, tmp_path, "labelme")
    for name, one in all_of_them.items():
        path = (tmp_path / "labelme" / name).with_suffix(".json")
        assert np.array_equal(label_map_of(read_labelme(path), one), one.label_map.numpy())
        assert (path.parent / json.loads(path.read_text())["imagePath"]).resolve() == (tmp_path / name).resolve()


@pytest.mark.parametrize("by_pillow", [False, True], ids=["centres", "drawn"])
def test_yolo_polygons_give_back_nearly_the_same_mask(demo_scenes, tmp_path, by_pillow):
    labels = write(demo_scenes, tmp_path, "yolo")
    compared = 0
    for name, one in demo_scenes.items():
        path = (tmp_path / "yolo/labels" / name).with_suffix(".txt")
        found = read_yolo(path, labels, tuple(one.label_map.shape), by_pillow=by_pillow)
        masks = one.masks()
        assert set(found) == set(masks)
        for label, mask in masks.items():
            assert iou(found[label], mask) >= MIN_IOU, (name, label)
            compared += 1
    assert compared > 5
    assert f"  0: {json.dumps(labels[0])}\n" in (tmp_path / "yolo/data.yaml").read_text()


def test_a_polygon_has_the_holes_and_parts_of_its_mask(tmp_path):
    one = segmentation_of(difficult_masks(), ("cat", "dog"))
    labels = write({"x.png": one}, tmp_path, "yolo")
    found = read_yolo(tmp_path / "yolo/labels/x.txt", labels, (40, 60), by_pillow=False)
    for label, mask in one.masks().items():
        assert iou(found[label], mask) >= MIN_IOU, label


def test_the_background_is_no_object(tmp_path):
    one = segmentation_of(np.array([[0, 1], [0, 0]]), ("background", "cat"), background=0)
    assert write({"x.png": one}, tmp_path, "coco", "labelme", "yolo") == ["cat"]
    assert set(read_coco(tmp_path / "coco.json")["x.png"]) == {"cat"}
    assert set(read_labelme(tmp_path / "labelme/x.json")) == {"cat"}
    assert len((tmp_path / "yolo/labels/x.txt").read_text().splitlines()) == 1


def test_what_was_added_before_an_interruption_is_written(tmp_path):
    annotations = Annotations(["coco"], tmp_path, ["cat", "dog"])

    def interrupted() -> None:
        with annotations.closing():
            annotations.add(segmentation_of(difficult_masks(), ("cat", "dog")), "x.png", "x.png")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(read_coco(tmp_path / "coco.json")) == ["x.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["coco.json"]
