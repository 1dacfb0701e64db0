"""Each data set on a miniature of its layout: masks by hand, and the mIoU of a prediction worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from nerve_kernels.evaluation import (
    DATASETS,
    DatasetNotFoundError,
    LabelledImages,
    MeanIoU,
    UnreadableImageError,
    class_lists,
    open_dataset,
)
from nerve_kernels.evaluation.class_lists import ClassList
from nerve_kernels.segmentation.output.palette import voc_palette
from nerve_kernels.segmentation.presets import PRESETS
from nerve_kernels.segmentation.text_image.prompts import parse_labels

Rows = Sequence[Sequence[int]]


def write_image(path: Path, size: tuple[int, int] = (3, 2), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 10)).save(path, **options)


def write_labels(path: Path, rows: Rows, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(rows, dtype=np.uint8))
    if palette:
        image.putpalette(voc_palette())
    image.save(path)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mean_iou(dataset: LabelledImages[Any], predictions: Sequence[Rows]) -> float:
    metric = MeanIoU(dataset.classes)
    for index, rows in enumerate(predictions):
        metric.update(np.array(rows), dataset[index].mask)
    return metric.compute().miou


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    write_text(base / "ImageSets" / "Segmentation" / "val.txt", "2007_000033\n2007_000042\n")
    for name, rows in (("2007_000033", [[0, 1, 1], [0, 255, 20]]), ("2007_000042", [[0, 0, 0], [15, 15, 0]])):
        write_image(base / "JPEGImages" / f"{name}.jpg")
        write_labels(base / "SegmentationClass" / f"{name}.png", rows, palette=True)
    return tmp_path


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_pascal_voc_with_background(voc, below):
    dataset = open_dataset("voc21", voc / below)
    assert len(dataset.classes) == 21
    assert [dataset.classes[i] for i in (0, 1, 15, 20)] == ["background", "aeroplane", "person", "tv monitor"]
    assert list(dataset.identifiers) == ["2007_000033", "2007_000042"]
    assert dataset[0].image.size == (3, 2)
    assert dataset[0].mask.tolist() == [[0, 1, 1], [0, 255, 20]]
    # background 4 right of 7 in the union, aeroplane 1 of 2, person 1 of 3, monitor 1 of 1; the 255 counts nowhere
    predictions = [[[0, 1, 0], [15, 1, 20]], [[0, 0, 0], [15, 0, 0]]]
    assert mean_iou(dataset, predictions) == pytest.approx((5 / 8 + 1 / 2 + 1 / 3 + 1) / 4)


def test_pascal_voc_without_background_does_not_score_it(voc):
    dataset = open_dataset("voc20", voc)
    assert len(dataset.classes) == 20
    assert dataset.classes[0] == "aeroplane"
    assert dataset[0].mask.tolist() == [[255, 0, 0], [255, 255, 19]]
    # aeroplane 1 of 2, monitor 1 of 2, person 2 of 2
    assert mean_iou(dataset, [[[5, 0, 19], [5, 5, 19]], [[5, 5, 5], [14, 14, 5]]]) == pytest.approx(2 / 3)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """As published: 459 labels in .mat files; 2 aeroplane, 9 bag, 458 wood, 255 and 1 none of the 59."""
    base = tmp_path / "VOCdevkit" / "VOC2010"
    write_text(base / "ImageSets" / "Main" / "val.txt", "2008_000002\n")
    write_image(base / "JPEGImages" / "2008_000002.jpg")
    (base / "trainval").mkdir()
    label_map = np.array([[2, 9, 458], [255, 1, 458]], dtype=np.uint16)
    savemat(base / "trainval" / "2008_000002.mat", {"LabelMap": label_map})
    return tmp_path


@pytest.fixture
def converted_context(tmp_path: Path) -> Path:
    base = tmp_path / "VOC2010"
    write_text(base / "ImageSets" / "SegmentationContext" / "val.txt", "2008_000002\n")
    write_image(base / "JPEGImages" / "2008_000002.jpg")
    write_labels(base / "SegmentationClassContext" / "2008_000002.png", [[1, 2, 59], [0, 0, 59]])
    return tmp_path


@pytest.mark.parametrize("layout", ["context", "converted_context"])
def test_pascal_context_in_both_layouts(layout, request):
    root = request.getfixturevalue(layout)
    with_background, without = open_dataset("context60", root), open_dataset("context59", root)
    assert (len(with_background.classes), len(without.classes)) == (60, 59)
    assert [without.classes[i] for i in (0, 1, 36, 58)] == ["aeroplane", "bag", "person", "wood"]
    assert with_background[0].mask.tolist() == [[1, 2, 59], [0, 0, 59]]
    assert without[0].mask.tolist() == [[0, 1, 58], [255, 255, 58]]
    # aeroplane 1 of 1, bag 0 of 1, wood 2 of 3; background 2 of 2 where it is scored
    assert mean_iou(with_background, [[[1, 59, 59], [0, 0, 59]]]) == pytest.approx((1 + 0 + 2 / 3 + 1) / 4)
    assert mean_iou(without, [[[0, 58, 58], [4, 4, 58]]]) == pytest.approx((1 + 0 + 2 / 3) / 3)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """0 person, 12 stop sign, 89 toothbrush, 91 banner, 181 wood, 255 unlabelled."""
    write_image(tmp_path / "val2017" / "000000000139.jpg")
    maps = tmp_path / "stuffthingmaps_trainval2017" / "val2017"
    write_labels(maps / "000000000139.png", [[0, 12, 89], [91, 181, 255]])
    write_labels(maps / "000000000139_labelTrainIds.png", [[0, 0, 0], [0, 0, 0]])  # left there by a conversion
    return tmp_path


def test_coco_stuff(coco):
    dataset = open_dataset("coco-stuff", coco)
    assert len(dataset.classes) == 171
    assert len(dataset) == 1
    assert [dataset.classes[i] for i in (0, 11, 79, 80, 170)] == ["person", "stop sign", "toothbrush", "banner", "wood"]
    assert dataset[0].mask.tolist() == [[0, 11, 79], [80, 170, 255]]
    # person 1 of 2, stop sign 0 of 1, toothbrush, banner, wood 1 of 1
    assert mean_iou(dataset, [[[0, 0, 79], [80, 170, 3]]]) == pytest.approx((1 / 2 + 0 + 3) / 5)


def test_coco_object_takes_everything_else_for_background(coco):
    dataset = open_dataset("coco-object", coco)
    assert len(dataset.classes) == 81
    assert [dataset.classes[i] for i in (0, 1, 12, 80)] == ["background", "person", "stop sign", "toothbrush"]
    assert dataset[0].mask.tolist() == [[1, 12, 80], [0, 0, 0]]
    # background 2 of 3, person 1 of 2, stop sign and toothbrush 1 of 1
    assert mean_iou(dataset, [[[1, 12, 80], [0, 0, 1]]]) == pytest.approx((2 / 3 + 1 / 2 + 2) / 4)


def test_ade20k_does_not_score_zero(tmp_path):
    base = tmp_path / "ADEChallengeData2016"
    write_image(base / "images" / "validation" / "ADE_val_00000001.jpg")
    write_labels(base / "annotations" / "validation" / "ADE_val_00000001.png", [[0, 1, 1], [150, 150, 13]])
    dataset = open_dataset("ade20k", tmp_path)
    assert len(dataset.classes) == 150
    assert [dataset.classes[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]
    assert dataset[0].mask.tolist() == [[255, 0, 0], [149, 149, 12]]
    # wall 1 of 2, flag 2 of 3, person 0 of 1
    assert mean_iou(dataset, [[[7, 0, 149], [149, 149, 0]]]) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


def test_cityscapes_by_its_label_ids(tmp_path):
    for city, number in (("frankfurt", "000000_000294"), ("munster", "000000_000019")):
        name = f"{city}_{number}"
        write_image(tmp_path / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png")
        folder = tmp_path / "gtFine" / "val" / city
        write_labels(folder / f"{name}_gtFine_labelIds.png", [[7, 8, 26], [33, 4, 29]])
        write_labels(folder / f"{name}_gtFine_instanceIds.png", [[7, 8, 26], [33, 4, 29]])
    dataset = open_dataset("cityscapes", tmp_path)
    assert len(dataset.classes) == 19
    assert [dataset.classes[i] for i in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert list(dataset.identifiers) == ["frankfurt_000000_000294", "munster_000000_000019"]
    assert dataset[1].mask.tolist() == [[0, 1, 13], [18, 255, 255]]  # static and caravan are not evaluated
    right, wrong = [[0, 1, 13], [18, 0, 0]], [[0, 0, 13], [18, 0, 0]]
    # road 2 of 3, sidewalk 1 of 2, car and bicycle 2 of 2
    assert mean_iou(dataset, [right, wrong]) == pytest.approx((2 / 3 + 1 / 2 + 2) / 4)


def test_embedded_scenes_by_their_name():
    dataset = open_dataset("embedded")
    assert (len(dataset), dataset.has_background, len(dataset.classes)) == (200, True, 51)
    perfect = mean_iou(dataset, [dataset[0].mask.tolist()])
    assert perfect == 1
    with pytest.raises(ValueError, match="split: expected 'validation' or 'test', got 'val'"):
        open_dataset("embedded", split="val")


def test_a_wrong_root_says_what_was_looked_for_and_what_is_there(voc):
    (voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(DatasetNotFoundError) as error:
        open_dataset("voc21", voc)
    lines = str(error.value).splitlines()
    assert "Pascal VOC 2012" in lines[0]
    assert "  found   VOCdevkit/VOC2012/SegmentationClass" in lines
    assert "  missing VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt" in lines
    assert lines[-1] == f"{voc} holds: VOCdevkit/"
    with pytest.raises(DatasetNotFoundError, match="it does not exist"):
        open_dataset("ade20k", voc / "nowhere")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "embedded"])
def test_every_data_set_refuses_an_empty_folder_and_no_folder(name, tmp_path):
    with pytest.raises(DatasetNotFoundError, match="it is empty"):
        open_dataset(name, tmp_path)
    with pytest.raises(ValueError, match=r"root: expected the folder that .* was unpacked into, got none"):
        open_dataset(name)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"dataset: expected one of voc21, voc20, .*, got 'voc12'"):
        open_dataset("voc12")


def test_damage_is_told_from_truth(voc):
    base = voc / "VOCdevkit" / "VOC2012"
    dataset = open_dataset("voc21", voc)
    annotation, image = base / "SegmentationClass" / "2007_000033.png", base / "JPEGImages" / "2007_000033.jpg"
    write_labels(annotation, [[0, 1, 21], [0, 0, 0]], palette=True)
    with pytest.raises(UnreadableImageError, match="holds the label 21, which Pascal VOC 2012"):
        dataset[0]
    write_labels(annotation, [[0, 1], [0, 0]], palette=True)
    with pytest.raises(UnreadableImageError, match=r"is \(2, 2\) pixels, wanted one label for each pixel"):
        dataset[0]
    Image.new("RGB", (3, 2)).save(annotation)
    with pytest.raises(UnreadableImageError, match="mode RGB, wanted one label a pixel"):
        dataset[0]
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(UnreadableImageError, match=r"2007_000033\.jpg: unreadable"):
        dataset[0]
    image.unlink()
    with pytest.raises(UnreadableImageError, match=r"2007_000033\.jpg: no such file"):
        dataset[0]


def test_rotation_notes_are_ignored_as_annotations_do_not_know_them(voc):
    """A camera's note "turn me" would turn the image away from its mask."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(voc / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000033.jpg", exif=exif)
    from nerve_kernels.segmentation.images import load_image

    assert load_image(open_dataset("voc21", voc)[0].image).size == (3, 2)


def test_the_protocol_in_the_documentation_is_the_presets():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    config = vars(PRESETS["sd15-clip-b16"].config)
    stated = {}
    for fields, values in re.findall(r"^\| [^|]* \| ([^|]*) \| ([\d, ]+) \|", page, flags=re.MULTILINE):
        stated |= dict(zip(re.findall(r"`(\w+)`", fields), map(int, values.split(",")), strict=True))
    assert stated == {name: config[name] for name in ("clip_size", "clip_window", "clip_stride", "diffusion_size")}


def test_every_data_set_has_a_row_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = page[page.index("| `--dataset` |") : page.index("Class names and their synonyms")]
    assert {name for name in DATASETS if f"`{name}`" not in table} == set()


CLASS_FILES = {"pascal_voc": 20, "pascal_context": 59, "coco": 171, "ade20k": 150, "cityscapes": 19}


def test_every_class_file_is_counted_here():
    folder = Path(class_lists.__file__).with_name("class_names")
    assert {path.stem for path in folder.glob("*.txt")} == set(CLASS_FILES)


@pytest.mark.parametrize(("name", "count"), CLASS_FILES.items())
def test_class_files_are_complete_and_usable_as_labels(name, count):
    classes = ClassList.read(name)
    assert len(classes.labels) == len(set(classes.labels)) == len(classes.names) == count
    assert list(classes.labels) == sorted(classes.labels)
    for background in (False, True):  # parse_labels refuses a name that stands for two classes
        names = classes.all_names(background=background)
        words = "default" if background else ()
        assert len(parse_labels(names, words).shown) == count + background
