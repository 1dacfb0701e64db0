import io

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_kernels.segmentation.images import NotAnImageError, load_image, size_for_model, to_tensor


def reread(image: Image.Image, tmp_path, name: str, **options) -> Image.Image:
    path = tmp_path / name
    image.save(path, **options)
    return load_image(path)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn to see it upright
    assert reread(image, tmp_path, "turned.jpg", exif=exif).size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tiffs_are_turned_upright(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert reread(Image.new(mode, (40, 20)), tmp_path, "turned.tif", exif=exif).size == (20, 40)


def test_transparency_is_laid_on_white(tmp_path):
    clear = Image.new("RGBA", (3, 2), (200, 0, 0, 0))
    assert reread(clear, tmp_path, "clear.png").getpixel((0, 0)) == (255, 255, 255)
    solid = Image.new("RGBA", (3, 2), (200, 0, 0, 255))
    assert reread(solid, tmp_path, "solid.png").getpixel((0, 0)) == (200, 0, 0)
    grey = Image.new("LA", (3, 2), (9, 255))
    assert reread(grey, tmp_path, "grey.png").getpixel((0, 0)) == (9, 9, 9)
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert reread(palette, tmp_path, "palette.png", transparency=0).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "colour", "wanted"), [("L", 77, 77), ("1", 1, 255)])
def test_grey_and_black_and_white(tmp_path, mode, colour, wanted):
    assert reread(Image.new(mode, (3, 2), colour), tmp_path, "x.png").getpixel((1, 1)) == (wanted,) * 3


def test_sixteen_bits_keep_their_greys(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    loaded = reread(Image.fromarray(values), tmp_path, "deep.png")
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_floating_point_images(tmp_path):
    values = np.array([[0.0, 0.5, 1.0, 0.25]], dtype=np.float32)
    loaded = reread(Image.fromarray(values), tmp_path, "float.tiff")
    assert [loaded.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 64]


def test_cmyk(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    loaded = reread(red, tmp_path, "print.jpg")
    pixel = loaded.getpixel((4, 4))
    assert loaded.mode == "RGB"
    assert pixel[0] > 200
    assert max(pixel[1:]) < 60


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    loaded = reread(frames[0], tmp_path, "x.gif", save_all=True, append_images=frames[1:])
    assert loaded.getpixel((0, 0)) == (255, 0, 0) or loaded.getpixel((0, 0)) == (254, 0, 0)


def test_arrays():
    assert load_image(np.full((4, 6), 7, np.uint8)).getpixel((5, 3)) == (7, 7, 7)
    assert load_image(np.full((4, 6, 1), 7, np.uint8)).size == (6, 4)
    assert load_image(np.full((4, 6, 3), 7, np.uint8)).size == (6, 4)
    assert load_image(np.zeros((4, 6, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


def test_the_argument_is_left_as_it_was():
    image = Image.new("RGB", (4, 4), "red")
    loaded = load_image(image)
    loaded.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("array", [np.zeros((4, 6, 3)), np.zeros((4, 6, 2), np.uint8), np.zeros(4, np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(TypeError, match=r"image: expected uint8 .*, got an array of .*; scale floats"):
        load_image(array)


def test_what_is_no_image_is_refused(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    with pytest.raises(NotAnImageError, match=r"notes\.png: not an image$"):
        load_image(text)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(NotAnImageError, match="not an image"):
        load_image(empty)
    with pytest.raises(NotAnImageError):
        load_image(tmp_path)  # a folder
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(TypeError, match="image: expected a path, a PIL image or a uint8 array, got int"):
        load_image(3)  # type: ignore[arg-type]
    with pytest.raises(NotAnImageError, match="no pixels"):
        load_image(np.zeros((0, 6, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, kind):
    stream = io.BytesIO()
    random = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(random).save(stream, kind)
    half = tmp_path / "half.img"
    half.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(NotAnImageError, match=r"half\.img: "):
        load_image(half)


def test_tensor_is_resized_and_scaled():
    tensor = to_tensor(Image.new("RGB", (10, 5), (255, 0, 51)), (8, 16))
    assert tensor.shape == (1, 3, 8, 16)
    torch.testing.assert_close(tensor[0, :, 3, 3], torch.tensor([1.0, 0.0, 0.2]))


def test_very_long_images_cost_no_more_than_long_ones():
    most = 1.5 * 4 * 512**2
    for size in ((1, 1), (10, 20_000), (20_000, 10), (1, 100_000), (600, 900), (700, 3000)):
        height, width = size_for_model(size, 512, 64)
        assert height % 64 == width % 64 == 0
        assert min(height, width) >= 64
        assert height * width <= most
        assert (height <= width) == (size[0] <= size[1])


def test_memory_that_runs_out_is_not_taken_for_damage(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def no_memory(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(MemoryError):
        load_image(tmp_path / "x.png")


def test_any_exception_of_a_reader_is_one_sentence(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def broken(self: Image.Image) -> None:
        raise KeyError("chunk")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(NotAnImageError, match=r"x\.png: unreadable \('chunk'\)$"):
        load_image(tmp_path / "x.png")
