"""What may be trained on, what may ship, and what is kept apart."""

import itertools

import pytest
from training.models.train_clip import CHECK_SCENES, CHECK_SEED
from training.world import scenes
from training.world.vocabulary import (
    NOUN_LIST,
    NOUNS,
    SEEN_STYLE,
    SHIPPED_STYLES,
    STYLES,
    TRAINING_STYLES,
    UNSEEN_STYLE,
)


def test_unseen_style_is_never_trained_on():
    assert UNSEEN_STYLE not in TRAINING_STYLES
    assert SEEN_STYLE in TRAINING_STYLES


def test_shipped_artwork_is_permissively_licensed():
    licences = {style.name: style.licence for style in STYLES}
    assert {SEEN_STYLE, UNSEEN_STYLE} == set(SHIPPED_STYLES)
    assert {licences[name] for name in SHIPPED_STYLES} <= {"Apache-2.0", "MIT"}


def test_every_package_is_pinned():
    assert all(style.package.count("@") == 2 for style in STYLES)


def test_world_is_large_enough_and_fits_a_byte():
    assert 40 <= len(NOUN_LIST) <= 254
    assert all(names for names in NOUNS.values())


def test_seeds_of_splits_demo_and_training_check_are_disjoint():
    ranges = [set(range(first, first + count)) for _, _, count, first in scenes.SPLITS]
    ranges.append({seed for _, _, seed in scenes.DEMO})
    ranges.append(set(range(CHECK_SEED, CHECK_SEED + CHECK_SCENES)))
    for one, other in itertools.combinations(ranges, 2):
        assert not one & other


def test_a_style_that_may_not_ship_is_refused():
    with pytest.raises(ValueError, match="style: got 'twemoji', wanted one that may ship: noto, fluent"):
        scenes.shipped_scene({}, None, "twemoji", 0, scenes.RECIPE)
