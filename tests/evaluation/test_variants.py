"""The rows of an ablation, and settings read from text."""

from __future__ import annotations

import pytest

from nerve_kernels.evaluation.variants import BASE, ablation, parse_setting
from nerve_kernels.segmentation import NerveConfig


def test_the_usual_rows_change_one_thing_each():
    base = NerveConfig(beta=0.25)
    rows = ablation(base)
    assert rows[BASE] == base
    assert rows["clip alone"] == base.replace(walk=False)
    assert rows["global only"].beta == 1.0
    assert rows["limit of the walk"].limit_walk
    assert "heads entropy" not in rows  # the base itself
    assert len(set(rows.values())) == len(rows)


def test_chosen_rows_take_the_place_of_the_usual_ones():
    rows = ablation(NerveConfig(), ["alpha=[0.5, 0.9]", 'seed_mode=["cross_attention"]', "window=[5, [3, 5]]"])
    assert list(rows) == [BASE, "alpha=0.5", 'seed_mode="cross_attention"', "window=5", "window=[3, 5]"]
    assert rows["window=[3, 5]"].window == (3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", "expected field=value"),
        ("alpha=0.5", "expected a list of values"),
        ("alpha=[2]", r"alpha: expected a number in \[0, 1\), got 2"),
    ],
)
def test_rows_that_cannot_be(text, message):
    with pytest.raises(ValueError, match=message):
        ablation(NerveConfig(), [text])


def test_values_are_json_or_else_text():
    assert parse_setting('layers=["latent/1"]') == ("layers", ["latent/1"])
    assert parse_setting("clip_size = 560") == ("clip_size", 560)
    assert parse_setting("criterion=uniform") == ("criterion", "uniform")
