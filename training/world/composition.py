"""Scenes: sprites scaled, rotated and laid over a background, with exact masks from their alpha."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image
from training.world.artwork import Sprites
from training.world.vocabulary import NOUN_LIST


@dataclass(frozen=True)
class SceneRecipe:
    """What a scene may look like. Sides are in pixels, of the longer side of an object."""

    height: int = 128
    width: int = 128
    fewest_objects: int = 2
    most_objects: int = 5
    smallest_side: float = 30
    largest_side: float = 76
    largest_rotation: float = 35
    #: An object must show this share of itself and this many pixels, else the scene is redone.
    least_visible_share: float = 0.4
    least_visible_pixels: int = 150
    #: How far an object may stick out of the image, as a share of its size.
    overhang: float = 0.15
    #: Random gain and tone curve of each object, 0 for the artwork's own colours.
    colour_jitter: float = 0.0
    #: Evaluation draws each noun the same way; training takes every drawing there is.
    first_drawing_only: bool = False


class BackgroundSource(Protocol):
    """Whatever draws backgrounds: (height, width, 3) uint8."""

    def sample(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3), its label map (H, W; 0 background, i + 1 for noun i) and its nouns."""

    image: np.ndarray
    mask: np.ndarray
    nouns: tuple[str, ...]


def compose_scene(
    rng: np.random.Generator,
    sprites: Sprites,
    styles: tuple[str, ...],
    backgrounds: BackgroundSource,
    recipe: SceneRecipe,
) -> Scene:
    """Draw scenes from `rng` until one keeps every object visible enough."""
    while True:
        scene = _try_scene(rng, sprites, styles, backgrounds, recipe)
        if scene is not None:
            return scene


def _try_scene(
    rng: np.random.Generator,
    sprites: Sprites,
    styles: tuple[str, ...],
    backgrounds: BackgroundSource,
    recipe: SceneRecipe,
) -> Scene | None:
    height, width = recipe.height, recipe.width
    image = backgrounds.sample(rng, height, width)
    mask = np.zeros((height, width), dtype=np.uint8)
    count = int(rng.integers(recipe.fewest_objects, recipe.most_objects + 1))
    style = styles[rng.integers(len(styles))]
    whole_areas: dict[int, int] = {}
    while len(whole_areas) < count:
        noun = int(rng.integers(len(NOUN_LIST)))
        drawings = sprites.get((style, NOUN_LIST[noun]))
        if drawings is None or noun in whole_areas:
            if len(styles) > 1 and drawings is None:
                style = styles[rng.integers(len(styles))]
            continue
        choice = 0 if recipe.first_drawing_only else int(rng.integers(len(drawings)))
        sprite = _transform(rng, drawings[choice], recipe)
        whole_areas[noun] = _paste(rng, image, mask, sprite, noun + 1, recipe.overhang)
        if whole_areas[noun] == 0:
            return None
    visible = np.bincount(mask.ravel(), minlength=len(NOUN_LIST) + 1)
    for noun, whole in whole_areas.items():
        shown = visible[noun + 1]
        if shown < recipe.least_visible_pixels or shown < recipe.least_visible_share * whole:
            return None
    return Scene(image, mask, tuple(NOUN_LIST[noun] for noun in whole_areas))


def _transform(rng: np.random.Generator, sprite: Image.Image, recipe: SceneRecipe) -> np.ndarray:
    """A sprite at a random size and angle, perhaps mirrored and recoloured; RGBA float32."""
    # Uniform in the logarithm: small objects are as usual as large ones.
    logarithm = rng.uniform(np.log(recipe.smallest_side), np.log(recipe.largest_side))
    scale = float(np.exp(logarithm)) / max(sprite.size)
    size = (max(2, round(sprite.width * scale)), max(2, round(sprite.height * scale)))
    resized = sprite.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = float(rng.uniform(-recipe.largest_rotation, recipe.largest_rotation))
    turned = resized.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    pixels = np.asarray(turned, dtype=np.float32) / 255
    if recipe.colour_jitter > 0:
        jitter = recipe.colour_jitter
        colours = pixels[:, :, :3] ** np.float32(np.exp(rng.uniform(-jitter, jitter)))
        colours *= (1 + rng.uniform(-jitter, jitter, 3)).astype(np.float32)
        grey = colours.mean(axis=2, keepdims=True)
        colours = grey + (colours - grey) * np.float32(1 + rng.uniform(-jitter, jitter))
        pixels = np.concatenate([np.clip(colours, 0, 1), pixels[:, :, 3:]], axis=2)
    return pixels


def _paste(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    sprite: np.ndarray,
    label: int,
    overhang: float,
) -> int:
    """Lay one sprite over image and mask, in place; returns its whole area in pixels."""
    height, width = mask.shape
    rows, columns = sprite.shape[:2]
    out_y, out_x = overhang * rows, overhang * columns
    low_y, high_y = sorted((-out_y, height - rows + out_y))
    low_x, high_x = sorted((-out_x, width - columns + out_x))
    top, left = round(rng.uniform(low_y, high_y)), round(rng.uniform(low_x, high_x))
    y0, y1 = max(0, top), min(height, top + rows)
    x0, x1 = max(0, left), min(width, left + columns)
    if y0 >= y1 or x0 >= x1:
        return 0
    shown = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = shown[:, :, 3:]
    region = image[y0:y1, x0:x1]
    region[:] = (region * (1 - alpha) + shown[:, :, :3] * (255 * alpha) + 0.5).astype(np.uint8)
    mask[y0:y1, x0:x1][alpha[:, :, 0] >= 0.5] = label
    return int(np.count_nonzero(sprite[:, :, 3] >= 0.5))
