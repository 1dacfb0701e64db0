from pathlib import Path

import pytest
from PIL import Image

from nerve_kernels.cli.inputs import find_images, labels_beside, result_stems


def make_tree(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "deep/c.webp", "deep/er/d.PNG", "odd[1].png"):
        Image.new("RGB", (2, 2)).save(folder / name)
    (folder / "notes.md").write_text("no image")


def names(found: list[Path]) -> list[str]:
    return [path.name for path in found]


def test_folders_globs_and_files(tmp_path):
    make_tree(tmp_path)
    assert names(find_images([str(tmp_path)])[0]) == ["a.jpg", "b.png", "odd[1].png"]
    assert names(find_images([f"{tmp_path}/*.png"])[0]) == ["b.png", "odd[1].png"]
    assert names(find_images([f"{tmp_path}/**/*"])[0]) == ["a.jpg", "b.png", "c.webp", "d.PNG", "odd[1].png"]
    # A file is taken as it is named, a bracket or a foreign suffix included.
    assert names(find_images([f"{tmp_path}/odd[1].png", f"{tmp_path}/notes.md"])[0]) == ["odd[1].png", "notes.md"]


def test_each_image_comes_once(tmp_path):
    make_tree(tmp_path)
    assert names(find_images([f"{tmp_path}/b.png", str(tmp_path)])[0]) == ["b.png", "a.jpg", "odd[1].png"]


def test_what_gives_nothing_is_said(tmp_path):
    (tmp_path / "bare").mkdir()
    found, complaints = find_images([f"{tmp_path}/bare", f"{tmp_path}/absent.png", f"{tmp_path}/*.gif"])
    assert found == []
    assert [complaint.partition(": ")[2] for complaint in complaints] == [
        "no images in this folder",
        "no such file or folder",
        "no image fits this pattern",
    ]


def test_results_of_equal_names_are_numbered():
    images = [Path(name) for name in ("a/x.png", "b/x.png", "c/X.jpg", "x_2.png", "y.png")]
    assert [stem.name for stem in result_stems(images, Path("out"))] == ["x", "x_2", "X_3", "x_2_2", "y"]


def test_suffixes_that_a_result_would_lose_are_taken_off_before_names_are_compared():
    images = [Path(name) for name in ("x.png", "x.png.jpg", "x.JSON.png.tif", ".png", "y.txt.png")]
    assert [stem.name for stem in result_stems(images, Path("out"))] == ["x", "x_2", "x_3", ".png", "y.txt"]


def test_labels_beside_an_image(tmp_path):
    make_tree(tmp_path)
    assert labels_beside(tmp_path / "a.jpg") is None
    (tmp_path / "labels.txt").write_text("cat, dog")
    (tmp_path / "a.txt").write_text("bird\nfish\n")
    assert labels_beside(tmp_path / "a.jpg") == "bird\nfish\n"
    assert labels_beside(tmp_path / "b.png") == "cat, dog"
    for key in ("images", "pictures"):  # the second is what it was called earlier
        (tmp_path / "deep" / "labels.json").write_text(f'{{"{key}": [{{"file": "c.webp", "labels": ["cat", "a|b"]}}]}}')
        assert labels_beside(tmp_path / "deep" / "c.webp") == ["cat", "a|b"]
    assert labels_beside(tmp_path / "deep" / "other.png") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [{}]}', '{"images": 3}', "\xff"])
def test_a_labels_file_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"labels\.json: cannot read labels from it"):
        labels_beside(tmp_path / "c.png")
