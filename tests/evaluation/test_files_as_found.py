"""Data set files as they are found on disks: of other kinds than their names say, pipes, byte-order marks."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from tests.evaluation.small_datasets import voc_of

from nerve_kernels.evaluation import UnreadableImageError, open_dataset
from nerve_kernels.evaluation.class_lists import ClassList
from nerve_kernels.evaluation.labelled_images import ImageFiles, ImagesInFiles, read_label_map
from nerve_kernels.segmentation.images import load_image


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_of(tmp_path / "voc", 1)


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand EPS, a programming language, to another program."""

    def run(*arguments: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)


@pytest.fixture
def eps() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16)).save(stream, "EPS")
    return stream.getvalue()


@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.parametrize("part", ["JPEGImages/0000.jpg", "SegmentationClass/0000.png"])
def test_no_program_is_run_to_read_a_data_set(voc, eps, part):
    (voc / part).write_bytes(eps)
    with pytest.raises(UnreadableImageError, match=rf"{part}: not an image"):
        open_dataset("voc21", voc)[0]


@pytest.mark.parametrize("part", ["JPEGImages/0000.jpg", "SegmentationClass/0000.png"])
def test_a_pipe_is_not_waited_for(voc, part):
    (voc / part).unlink()
    os.mkfifo(voc / part)
    with pytest.raises(UnreadableImageError, match=rf"{part}: not a file"):
        open_dataset("voc21", voc)[0]


def test_a_pipe_in_the_place_of_a_mat_file_is_not_waited_for(voc):
    os.mkfifo(voc / "0000.mat")
    files = [ImageFiles("0000", voc / "JPEGImages/0000.jpg", voc / "0000.mat")]
    table = np.zeros(256, dtype=np.int16)
    dataset = ImagesInFiles(name="made up", names=(("a",),), files=files, table=table, read_labels=read_label_map)
    with pytest.raises(UnreadableImageError, match=r"0000\.mat: not a file"):
        dataset[0]


def test_images_are_read_as_the_command_reads_them(voc):
    """Of 16 bits too, which Pillow alone would clip to white; but never turned."""
    path = voc / "JPEGImages/0000.jpg"
    Image.fromarray(np.full((16, 24), 257 * 100, dtype=np.uint16)).save(path, "PNG")
    image = open_dataset("voc21", voc)[0].image
    assert image.getpixel((0, 0)) == (100, 100, 100)
    assert image.tobytes() == load_image(path).tobytes()


def test_a_byte_order_mark_is_no_part_of_an_identifier(voc):
    split = voc / "ImageSets/Segmentation/val.txt"
    split.write_text(split.read_text(), encoding="utf-8-sig")
    dataset = open_dataset("voc21", voc)
    assert list(dataset.identifiers) == ["0000"]
    assert dataset[0].image.size == (24, 16)


@pytest.fixture
def marked_class_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "class_names").mkdir()
    monkeypatch.setattr("nerve_kernels.evaluation.class_lists.resources.files", lambda package: tmp_path)
    return tmp_path / "class_names"


def test_a_byte_order_mark_is_no_part_of_a_class_list(marked_class_lists):
    (marked_class_lists / "made_up.txt").write_text("7: road|street\n8: sky\n", encoding="utf-8-sig")
    classes = ClassList.read("made_up")
    assert (classes.labels, classes.names) == ((7, 8), (("road", "street"), ("sky",)))
