"""Composed scenes: exact masks, the same for a seed, every object visible enough."""

import numpy as np
import pytest
from PIL import Image
from training.world.backgrounds import Backgrounds, _gradient, _noise, _stripes
from training.world.composition import SceneRecipe, compose_scene
from training.world.vocabulary import NOUN_LIST

STYLE = "plain"
#: No turning, no overhang: what is drawn is what was asked for, to the pixel.
UPRIGHT = SceneRecipe(largest_rotation=0, overhang=0)


class Black:
    """A background on which every object is plain to see."""

    def sample(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), dtype=np.uint8)


def colour_of(label: int) -> tuple[int, int, int]:
    return (label * 5, 255 - label * 5, 128)


@pytest.fixture(scope="module")
def squares() -> dict[tuple[str, str], list[Image.Image]]:
    """An opaque square of its own colour for every noun."""
    return {
        (STYLE, noun): [Image.new("RGBA", (112, 112), (*colour_of(index + 1), 255))]
        for index, noun in enumerate(NOUN_LIST)
    }


@pytest.mark.parametrize("seed", range(5))
def test_mask_says_exactly_which_object_shows(squares, seed):
    scene = compose_scene(np.random.default_rng(seed), squares, (STYLE,), Black(), UPRIGHT)
    for label in range(len(NOUN_LIST) + 1):
        colour = colour_of(label) if label else (0, 0, 0)
        shown = (scene.image == np.asarray(colour, dtype=np.uint8)).all(axis=2)
        np.testing.assert_array_equal(scene.mask == label, shown)
    assert {NOUN_LIST[label - 1] for label in np.unique(scene.mask) if label} == set(scene.nouns)


def test_half_transparent_pixels_belong_to_the_background(squares):
    # The left half opaque red, the right half faint green.
    pixels = np.zeros((112, 112, 4), dtype=np.uint8)
    pixels[:, :56], pixels[:, 56:] = (255, 0, 0, 255), (0, 255, 0, 90)
    drawings = {key: [Image.fromarray(pixels)] for key in squares}
    recipe = SceneRecipe(fewest_objects=1, most_objects=1, largest_rotation=0, overhang=0)
    scene = compose_scene(np.random.default_rng(0), drawings, (STYLE,), Black(), recipe)
    faint_only = (scene.image[:, :, 1] > 80) & (scene.image[:, :, 0] < 30)
    assert faint_only.any()
    assert not scene.mask[faint_only].any()
    assert scene.mask[scene.image[:, :, 0] > 230].all()


def test_same_seed_same_scene_other_seed_another(squares):
    first, again, other = (
        compose_scene(np.random.default_rng(seed), squares, (STYLE,), Black(), SceneRecipe()) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.nouns == again.nouns
    assert not np.array_equal(first.image, other.image)


def test_every_object_keeps_its_least_visible_area(squares):
    recipe = SceneRecipe(fewest_objects=5, most_objects=5, least_visible_pixels=300)
    for seed in range(10):
        scene = compose_scene(np.random.default_rng(seed), squares, (STYLE,), Black(), recipe)
        counts = np.bincount(scene.mask.ravel(), minlength=len(NOUN_LIST) + 1)
        assert len(scene.nouns) == 5
        assert all(counts[NOUN_LIST.index(noun) + 1] >= 300 for noun in scene.nouns)


def test_scenes_need_not_be_square(squares):
    recipe = SceneRecipe(height=128, width=192)
    scene = compose_scene(np.random.default_rng(0), squares, (STYLE,), Black(), recipe)
    assert scene.image.shape == (128, 192, 3)
    assert scene.mask.shape == (128, 192)


@pytest.mark.parametrize("draw", [_gradient, _noise, _stripes])
def test_synthetic_backgrounds_fill_the_picture_and_repeat_by_seed(draw):
    first, again = (draw(np.random.default_rng(7), 40, 56) for _ in range(2))
    assert first.shape == (40, 56, 3)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)


def test_unknown_part_of_the_photographs_is_refused():
    with pytest.raises(ValueError, match="part: got 'test', wanted 'training' or 'evaluation'"):
        Backgrounds("test")
