import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_kernels.segmentation.output.legend import draw_legend
from nerve_kernels.segmentation.output.palette import bright_colour, voc_colour, voc_palette
from nerve_kernels.segmentation.output.render import indexed_image, palette_indices, render_overlay
from nerve_kernels.segmentation.output.upsampling import best_labels
from nerve_kernels.segmentation.result import Segmentation

# The colours of PASCAL VOC's 20 classes as they are widely listed.
VOC_COLOURS = (
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
    (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128),
    (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
)  # fmt: skip


def test_voc_palette():
    assert tuple(voc_colour(index) for index in range(21)) == VOC_COLOURS
    assert voc_colour(255) == (224, 224, 192)
    assert len(voc_palette()) == 768
    assert len({voc_colour(index) for index in range(256)}) == 256
    with pytest.raises(ValueError, match=r"index: expected 0 \.\. 255, got 256"):
        voc_colour(256)


def test_bright_colours_differ():
    colours = [bright_colour(index) for index in range(40)]
    assert len(set(colours)) == 40
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_index_zero_is_background_or_unlabelled():
    label_map = torch.tensor([[-1, 0, 1, 2]])
    assert palette_indices(label_map).tolist() == [[0, 1, 2, 3]]
    assert palette_indices(label_map, background=0).tolist() == [[0, 0, 1, 2]]
    assert palette_indices(label_map, background=1).tolist() == [[0, 1, 0, 2]]


def test_indexed_image_survives_png(tmp_path):
    label_map = torch.tensor([[0, 1], [2, -1]])
    indexed_image(label_map).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == [[1, 2], [3, 0]]
        assert image.convert("RGB").getpixel((0, 0)) == (128, 0, 0)


def test_many_labels_need_sixteen_bits(tmp_path):
    label_map = torch.arange(1203)[None]
    indexed_image(label_map).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image).tolist() == [list(range(1, 1204))]


def test_overlay_enlarges_small_images_and_colours_labels():
    image = Image.new("RGB", (96, 64), (100, 100, 100))
    label_map = torch.zeros(64, 96, dtype=torch.int64)
    label_map[:, 48:] = 1
    overlay = render_overlay(image, label_map, ["background", "cat"], background=0)
    assert overlay.width == 720
    assert overlay.height > 480
    assert overlay.getpixel((20, 20)) == (100, 100, 100)  # the background keeps its colour
    red, green, blue = bright_colour(0)
    seen = overlay.getpixel((700, 20))
    assert all(abs(a - (0.45 * 100 + 0.55 * b)) <= 1 for a, b in zip(seen, (red, green, blue), strict=True))
    assert render_overlay(image, label_map, ["a", "b"], side_by_side=True).width == 2 * 720 + 12


def test_overlay_handles_any_shape_and_many_labels():
    generator = torch.Generator().manual_seed(0)
    for width, height in ((1, 1), (2000, 3), (5, 900), (640, 480)):
        label_map = torch.randint(-1, 300, (height, width), generator=generator)
        names = [f"a rather long name number {index}" for index in range(300)]
        overlay = render_overlay(Image.new("RGB", (width, height)), label_map, names)
        assert overlay.width >= width


def test_overlay_refuses_a_map_of_another_size():
    with pytest.raises(ValueError, match=r"label_map: expected .*\(4, 3\), got \(3, 4\)"):
        render_overlay(Image.new("RGB", (3, 4)), torch.zeros(3, 4, dtype=torch.int64), ["a"])


def test_legend_wraps():
    entry = ("something", (255, 0, 0), 0.1)
    assert draw_legend(400, [entry] * 9).height > draw_legend(400, [entry]).height
    assert draw_legend(20, [entry]).width == 20  # narrower than any name


def make_segmentation() -> Segmentation:
    planes = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)).softmax(0)
    return Segmentation(
        image=Image.new("RGB", (30, 20)),
        labels=("cat", "dog", "bird"),
        label_map=best_labels(planes, (20, 30), threshold=0.4),
        token_probabilities=planes,
    )


def test_summary_says_area_and_probability():
    segmentation = make_segmentation()
    summary = segmentation.summary()
    assert (summary["width"], summary["height"]) == (30, 20)
    areas = [row["area_pixels"] for row in summary["labels"]]
    assert sum(areas) + summary["unlabelled_pixels"] == 600
    probabilities = segmentation.probabilities
    assert probabilities.shape == (3, 20, 30)
    for index, row in enumerate(summary["labels"]):
        assert row["area_fraction"] == pytest.approx(row["area_pixels"] / 600)
        assert row["mean_probability"] == pytest.approx(float(probabilities[index].mean()), abs=1e-6)
        inside = segmentation.label_map == index
        if row["area_pixels"]:
            wanted = float(probabilities[index][inside].mean())
            assert row["mean_probability_inside"] == pytest.approx(wanted, abs=1e-6)
        else:
            assert row["mean_probability_inside"] is None


def test_save_writes_three_files(tmp_path):
    written = make_segmentation().save(tmp_path / "new" / "cat.v2")
    assert {name: path.name for name, path in written.items()} == {
        "overlay": "cat.v2_overlay.png",
        "labels": "cat.v2_labels.png",
        "summary": "cat.v2.json",
    }
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in written.values())
    assert json.loads(written["summary"].read_text())["labels"][0]["label"] == "cat"
    with Image.open(written["labels"]) as image:
        assert image.size == (30, 20)
    assert make_segmentation().save(tmp_path / "b.png")["summary"].name == "b.json"


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    target.write_text("old")
    from nerve_kernels.segmentation.output.files import write_atomic

    def fail(self, other):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("background", [None, 0])
@pytest.mark.parametrize("count", [2, 255, 256, 257, 1000])
def test_the_mode_of_the_labels_depends_on_how_many_there_are_and_not_on_which_occur(count, background):
    names = tuple(f"thing {number}" for number in range(count))
    modes = set()
    for label in (-1, 0, count - 1):
        planes = torch.full((count, 2, 2), 1 / count)
        result = Segmentation(Image.new("RGB", (2, 2)), names, torch.full((2, 2), label), planes, background)
        modes.add(result.indexed().mode)
    assert modes == {"P" if count - (background is not None) <= 255 else "I;16"}
