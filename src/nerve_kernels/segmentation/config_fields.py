"""What each field of NerveConfig accepts: a table over the package's one module of checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nerve_kernels._operators.checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_optional,
    check_pair,
    check_text,
    check_type,
    kind_of,
    refusal,
)

from .attention.layers import LAYER_SELECTORS, check_layer_selector
from .text_image.templates import TEMPLATES, resolve_templates

SEQUENCE_FIELDS = ("timesteps", "layers", "templates", "background_words", "window", "cells")
DENSE_FEATURES = ("value", "key_key", "query_query", "query_key")
SEED_MODES = ("cosine", "cross_attention")
PIXEL_REFINERS = ("walk", "pamr", "lposs+")
CRITERIA = ("entropy", "information", "cell_information", "uniform")
# Sixteen times what the models were trained for; what is larger is a slip, and would end in no memory at all.
MAX_SIDE = 8192

Check = Callable[[str, Any], object]


def _pixels(name: str, value: Any) -> None:
    check_count(name, value, low=1, high=MAX_SIDE, wanted=f"from 1 to {MAX_SIDE} (pixels)")


def _timesteps(name: str, value: Any) -> None:
    wanted = "a tuple of at least one int ≥ 0"
    for timestep in _items(name, value, wanted):
        check_count(name, timestep, low=0)


def _layers(name: str, value: Any) -> None:
    for selector in _items(name, value, f"a tuple of at least one of: {LAYER_SELECTORS}"):
        if isinstance(selector, bool) or not isinstance(selector, (int, str)):
            raise TypeError(refusal(name, LAYER_SELECTORS, kind_of(selector)))
        check_layer_selector(selector)


def _templates(name: str, value: Any) -> None:
    if not isinstance(value, str):
        for template in check_type(name, value, tuple, TEMPLATES):
            check_type(name, template, str, TEMPLATES)
    resolve_templates(value)


def _background_words(name: str, value: Any) -> None:
    wanted = "a tuple of words, none of them empty, or 'default'"
    if isinstance(value, str):
        if value != "default":
            raise ValueError(refusal(name, wanted, repr(value)))
        return
    for word in check_type(name, value, tuple, wanted):
        check_text(name, word, wanted)


def _window(name: str, value: Any) -> None:
    wanted = "an odd int ≥ 1 (tokens), or two of them"
    for side in check_pair(name, value, wanted, or_one=True):
        if check_count(name, side, low=1, wanted="that is odd and ≥ 1") % 2 == 0:
            raise ValueError(refusal(name, wanted, side))


def _cells(name: str, value: Any) -> None:
    for side in check_pair(name, value, "an int ≥ 1, or two of them, or None", or_one=True):
        check_count(name, side, low=1)


def _items(name: str, value: Any, wanted: str) -> tuple[Any, ...]:
    items: tuple[Any, ...] = check_type(name, value, tuple, wanted)
    if not items:
        raise ValueError(refusal(name, wanted, "none"))
    return items


def _choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> None:
        check_choice(name, check_type(name, value, str, " or ".join(map(repr, choices))), choices)

    return check


def _or_none(check: Callable[..., object], **options: Any) -> Check:
    return partial(check_optional, check, **options)


FIELDS: Mapping[str, Check] = {
    "diffusion_size": _pixels,
    "timesteps": _timesteps,
    "layers": _layers,
    "noise_seed": partial(check_count, low=0),
    "clip_size": _or_none(_pixels),
    "clip_window": _or_none(check_count, low=1, wanted="≥ 1 (pixels), or None"),
    "clip_stride": partial(check_count, low=1, wanted="≥ 1 (pixels)"),
    "dense_features": _choice(*DENSE_FEATURES),
    "clip_residual": check_flag,
    "clip_feed_forward": check_flag,
    "templates": _templates,
    "seed_mode": _choice(*SEED_MODES),
    "seed_scale": _or_none(check_number, low=0, low_open=True, wanted="> 0, or None"),
    "background_words": _background_words,
    "probability_threshold": partial(check_number, low=0, high=1, wanted="in [0, 1]"),
    "criterion": _choice(*CRITERIA),
    "temperature": partial(check_number, low=0, low_open=True, wanted="> 0"),
    "keep": _or_none(check_count, low=1, wanted="≥ 1, or None"),
    "window": _window,
    "cells": _or_none(_cells),
    "global_sharpness": partial(check_number, low=0, high=1000, low_open=True, wanted="in (0, 1000]"),
    "beta": partial(check_number, low=0, high=1, wanted="in [0, 1]"),
    "walk": check_flag,
    "alpha": partial(check_number, low=0, high=1, high_open=True, wanted="in [0, 1)"),
    "steps": _or_none(check_count, low=0, wanted="≥ 0, or None"),
    "tolerance": _or_none(check_number, low=0, high=1, low_open=True, high_open=True, wanted="in (0, 1), or None"),
    "limit_walk": check_flag,
    "refine_pixels": _or_none(_choice(*PIXEL_REFINERS)),
    "refine_steps": partial(check_count, low=0),
    "refine_alpha": partial(check_number, low=0, high=1, high_open=True, wanted="in [0, 1)"),
    "backend": _or_none(check_text, wanted="a backend's name, or None"),
}
