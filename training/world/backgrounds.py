"""Backgrounds: crops of openly licensed photographs, and synthetic gradients, noise and stripes.

The photographs are those that the scikit-image and scikit-learn wheels carry, so nothing is
fetched. Training crops come from the left two thirds of each, evaluation crops from the rest:
no evaluation background was ever seen.
"""

from dataclasses import dataclass
from importlib import resources

import numpy as np
from PIL import Image

TRAINING_SHARE = 0.64


@dataclass(frozen=True)
class Photograph:
    """A sample photograph and what its licence asks for."""

    package: str
    path: str
    licence: str
    credit: str


PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("skimage", "data/astronaut.png", "public domain", "NASA"),
    Photograph("skimage", "data/brick.png", "CC0-1.0", "CC0Textures, Bricks25"),
    Photograph("skimage", "data/camera.png", "CC0-1.0", "Lav Varshney"),
    Photograph("skimage", "data/cell.png", "CC0-1.0", "scikit-image, sample `cell`"),
    Photograph("skimage", "data/coffee.png", "CC0-1.0", "Rachel Michetti"),
    Photograph("skimage", "data/grass.png", "CC0-1.0", "linolafett, DeviantArt"),
    Photograph("skimage", "data/gravel.png", "CC0-1.0", "CC0Textures, Gravel04"),
    Photograph("skimage", "data/hubble_deep_field.jpg", "public domain", "NASA"),
    Photograph("sklearn", "datasets/images/china.jpg", "CC-BY-2.0", "danielbuechele, Flickr"),
    Photograph("sklearn", "datasets/images/flower.jpg", "CC-BY-2.0", "vultilion, Flickr"),
)


class Backgrounds:
    """Draws backgrounds; `part` is "training" or "evaluation" (disjoint parts of each photo)."""

    def __init__(self, part: str, photograph_share: float = 0.55) -> None:
        if part not in ("training", "evaluation"):
            raise ValueError(f"part: got {part!r}, wanted 'training' or 'evaluation'")
        self.photograph_share = photograph_share
        self.images: list[Image.Image] = []
        for photograph in PHOTOGRAPHS:
            source = resources.files(photograph.package).joinpath(photograph.path)
            with resources.as_file(source) as path:
                image = Image.open(path).convert("RGB")
            border = round(image.width * TRAINING_SHARE)
            box = (0, border) if part == "training" else (border, image.width)
            self.images.append(image.crop((box[0], 0, box[1], image.height)))

    def sample(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """One background, (height, width, 3) uint8."""
        if rng.random() < self.photograph_share:
            background = self._photograph(rng, height, width)
        else:
            kind = rng.integers(3)
            background = (_gradient, _noise, _stripes)[kind](rng, height, width)
        pixels: np.ndarray = np.clip(background, 0, 255).astype(np.uint8)
        return pixels

    def _photograph(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        image = self.images[rng.integers(len(self.images))]
        largest = min(image.width / width, image.height / height)
        scale = rng.uniform(min(0.6, largest), min(largest, 2.5))
        crop_width, crop_height = scale * width, scale * height
        left = rng.uniform(0, image.width - crop_width)
        top = rng.uniform(0, image.height - crop_height)
        crop = image.resize(
            (width, height),
            Image.Resampling.BILINEAR,
            box=(left, top, left + crop_width, top + crop_height),
        )
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(crop, dtype=np.float32)
        if np.ptp(pixels, axis=2).max() < 8 or rng.random() < 0.3:
            # Grey photographs (and some others) get two random ends for their tones.
            tone = pixels.mean(axis=2, keepdims=True) / 255
            dark, light = rng.uniform(0, 130, 3), rng.uniform(100, 255, 3)
            pixels = dark + tone * (light - dark)
        return np.asarray(pixels * rng.uniform(0.75, 1.2) + rng.uniform(-15, 15))


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (np.cos(angle) * columns + np.sin(angle) * rows) / 1.42 * 0.5 + 0.5
    else:
        ramp = np.hypot(rows - rng.uniform(-1, 1), columns - rng.uniform(-1, 1)) / 2.83
    return np.asarray(first + ramp[:, :, None] * (second - first))


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth random colours in up to three octaves, from blotches to grain."""
    total = np.zeros((height, width, 3), dtype=np.float32) + rng.uniform(40, 215, 3)
    amplitude = rng.uniform(20, 90)
    for cells in rng.choice([2, 3, 5, 8, 16, 32, 64], size=rng.integers(1, 4), replace=False):
        small = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        if rng.random() < 0.5:
            small[:] = small[:, :, :1]
        octave = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(octave, dtype=np.float32) / 127.5 - 1) * amplitude
        amplitude *= 0.6
    return total


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    pattern = np.sin(along * 2 * np.pi / period)
    if rng.random() < 0.4:
        across = -np.sin(angle) * columns + np.cos(angle) * rows
        pattern = pattern * np.sin(across * 2 * np.pi / period)
    sharpness = rng.uniform(1, 6)
    ramp = np.clip(pattern * sharpness * 0.5 + 0.5, 0, 1)
    return np.asarray(first + ramp[:, :, None] * (second - first))
