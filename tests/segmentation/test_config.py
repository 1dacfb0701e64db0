import dataclasses
import json

import pytest

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.config_fields import FIELDS


def test_every_field_has_a_check():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(NerveConfig)}


def test_json_round_trip_keeps_every_field():
    config = NerveConfig(
        timesteps=(50, 100),
        layers=(64, "latent/2", "up_blocks.*"),
        window=(3, 5),
        cells=(4, 6),
        templates=("a {}.",),
        background_words=("sky", "wall"),
        steps=None,
        tolerance=0.01,
        clip_window=None,
    )
    assert NerveConfig.from_json(config.to_json()) == config
    assert isinstance(NerveConfig.from_json(config.to_json()).timesteps, tuple)


def test_file_round_trip(tmp_path):
    config = NerveConfig(alpha=0.5)
    assert NerveConfig.load(config.save(tmp_path / "made" / "config.json")) == config
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["config.json"]


def test_json_names_only_what_differs():
    assert NerveConfig.from_json('{"alpha": 0.5}') == NerveConfig(alpha=0.5)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NerveConfig().alpha = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("diffusion_size", 0),
        ("timesteps", ()),
        ("timesteps", (-1,)),
        ("layers", ()),
        ("layers", ("latent/0",)),
        ("layers", ("grid:x",)),
        ("layers", (0,)),
        ("noise_seed", -1),
        ("clip_size", 0),
        ("clip_window", -224),
        ("clip_stride", 0),
        ("dense_features", "keys"),
        ("templates", "imagenet"),
        ("templates", ()),
        ("templates", ("a photo",)),
        ("templates", ("{} and {}",)),
        ("seed_mode", "softmax"),
        ("seed_scale", 0.0),
        ("seed_scale", float("inf")),
        ("background_words", ("sky", " ")),
        ("background_words", "sky"),
        ("probability_threshold", 1.5),
        ("criterion", "sharpness"),
        ("temperature", 0.0),
        ("keep", 0),
        ("window", 4),
        ("window", (3, 4)),
        ("cells", 0),
        ("global_sharpness", 0.0),
        ("global_sharpness", 1000.5),
        ("beta", -0.1),
        ("beta", float("nan")),
        ("alpha", 1.0),
        ("steps", -1),
        ("backend", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: expected .*, got "):
        NerveConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probability_threshold", 0.0),
        ("probability_threshold", 1.0),
        ("keep", 1),
        ("window", 1),
        ("cells", 1),
        ("temperature", 1e-6),
        ("global_sharpness", 1e-3),
        ("global_sharpness", 1000),
        ("beta", 0.0),
        ("beta", 1.0),
        ("alpha", 0.0),
        ("steps", 0),
        ("noise_seed", 0),
    ],
)
def test_the_ends_of_a_range_are_in_it(field, value):
    assert getattr(NerveConfig(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", "0.5"),
        ("alpha", True),
        ("steps", 2.0),
        ("walk", 1),
        ("window", (3, 3, 3)),
        ("timesteps", 100),
        ("timesteps", (0.5,)),
        ("layers", "latent/1"),
        ("templates", (1,)),
        ("backend", 3),
        ("seed_mode", None),
    ],
)
def test_a_wrong_type_is_refused_by_name(field, value):
    with pytest.raises(TypeError, match=rf"^{field}: expected .*, got "):
        NerveConfig(**{field: value})


def test_exactly_one_of_steps_tolerance_and_limit():
    for wrong in (
        {"steps": 3, "tolerance": 0.1},
        {"steps": None, "tolerance": None},
        {"steps": 3, "limit_walk": True},
    ):
        with pytest.raises(
            ValueError,
            match=r"steps, tolerance, limit_walk: expected exactly one of them, got steps=.*; set the others",
        ):
            NerveConfig(**wrong)
    with pytest.raises(ValueError, match=r"tolerance: expected a number in \(0, 1\), or None, got 1\.5"):
        NerveConfig(steps=None, tolerance=1.5)


def test_replace_lets_steps_tolerance_and_limit_stand_for_each_other():
    def endings(config: NerveConfig) -> tuple[object, ...]:
        return config.steps, config.tolerance, config.limit_walk

    by_tolerance = NerveConfig().replace(tolerance=0.1)
    assert endings(by_tolerance) == (None, 0.1, False)
    to_the_limit = by_tolerance.replace(limit_walk=True)
    assert endings(to_the_limit) == (None, None, True)
    assert endings(to_the_limit.replace(steps=0)) == (0, None, False)
    assert NerveConfig.from_json(to_the_limit.to_json()) == to_the_limit


def test_a_stride_that_skips_pixels_is_refused():
    with pytest.raises(
        ValueError, match="clip_stride: expected at most clip_window=224, or parts of the image are never seen, got 300"
    ):
        NerveConfig(clip_stride=300)


def test_unknown_keys_are_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match="unknown field 'alhpa'; did you mean 'alpha'"):
        NerveConfig.from_json('{"alhpa": 0.5}')
    with pytest.raises(TypeError, match="unknown field 'zzz'; known: diffusion_size"):
        NerveConfig().replace(zzz=1)


@pytest.mark.parametrize("text", ["{", "", "[1"])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match="config: not valid JSON"):
        NerveConfig.from_json(text)


def test_json_that_is_no_object_is_refused():
    with pytest.raises(TypeError, match="config: expected an object of fields, got list"):
        NerveConfig.from_json(json.dumps([1]))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"alpha": ' + "1" * 5000 + "}", "{"])
def test_json_that_cannot_be_read_is_refused_in_words(text):
    with pytest.raises(ValueError, match="config: not valid JSON"):
        NerveConfig.from_json(text)


def test_numbers_beyond_every_float_are_refused_by_name():
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\), got inf"):
        NerveConfig(alpha=10**400)
    with pytest.raises(ValueError, match=r"steps: expected an int ≥ 0, or None and below 2⁶³, got one of 100 bits"):
        NerveConfig(steps=10**30)
    with pytest.raises(ValueError, match=r"diffusion_size: expected an int from 1 to 8192 \(pixels\), got 8193"):
        NerveConfig(diffusion_size=8193)
