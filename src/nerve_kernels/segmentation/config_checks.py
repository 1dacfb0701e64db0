"""What each field of NerveConfig accepts, and how that is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .attention.layers import is_layer_selector
from .text_image.templates import TEMPLATE_LISTS, is_template

SEQUENCE_FIELDS = ("timesteps", "layers", "templates", "background_words", "window", "cells")
DENSE_FEATURES = ("value", "key_key", "query_query", "query_key")
SEED_MODES = ("cosine", "cross_attention")
CRITERIA = ("entropy", "information", "uniform")
# Sixteen times what the models were trained for; what is larger is a slip, and would end in no memory at all.
MAX_SIDE = 8192


@dataclass(frozen=True)
class Check:
    """One field's accepted types and values, and the words for them."""

    type_matches: Callable[[Any], bool]
    value_matches: Callable[[Any], bool]
    wanted: str


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023  # else no float holds it
    return isinstance(value, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _optional(matches: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or matches(value)


def _tuple_of(matches: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(matches(item) for item in value)


def _int_or_pair(value: Any) -> bool:
    return _is_int(value) or (_tuple_of(_is_int)(value) and len(value) == 2)


def _is_side(value: Any) -> bool:
    return 1 <= value <= MAX_SIDE


def _sides(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _integer(low: int, wanted: str) -> Check:
    return Check(_is_int, lambda value: value >= low, wanted)


def _optional_integer(low: int, wanted: str) -> Check:
    return Check(_optional(_is_int), _optional(lambda value: value >= low), wanted)


def _number(matches: Callable[[Any], bool], wanted: str) -> Check:
    return Check(_is_number, lambda value: math.isfinite(value) and matches(value), wanted)


def _one_of(choices: tuple[str, ...]) -> Check:
    wanted = " or ".join(repr(choice) for choice in choices)
    return Check(_is_text, lambda value: value in choices, wanted)


def _flag() -> Check:
    return Check(lambda value: isinstance(value, bool), lambda value: True, "True or False")


def _is_template_choice(value: Any) -> bool:
    if isinstance(value, str):
        return value in TEMPLATE_LISTS
    return len(value) > 0 and all(is_template(item) for item in value)


CHECKS: dict[str, Check] = {
    "diffusion_size": Check(_is_int, _is_side, f"an integer from 1 to {MAX_SIDE} (pixels)"),
    "timesteps": Check(
        _tuple_of(_is_int),
        lambda value: len(value) > 0 and min(value) >= 0,
        "at least one integer >= 0",
    ),
    "layers": Check(
        _tuple_of(lambda item: _is_int(item) or _is_text(item)),
        lambda value: len(value) > 0 and all(is_layer_selector(item) for item in value),
        "at least one of: a grid side such as 64 or 'grid:64', 'latent/2', or a module name or glob",
    ),
    "noise_seed": _integer(0, "an integer >= 0"),
    "clip_size": Check(_optional(_is_int), _optional(_is_side), f"an integer from 1 to {MAX_SIDE} (pixels) or None"),
    "clip_window": _optional_integer(1, "an integer >= 1 (pixels) or None"),
    "clip_stride": _integer(1, "an integer >= 1 (pixels)"),
    "dense_features": _one_of(DENSE_FEATURES),
    "clip_residual": _flag(),
    "clip_feed_forward": _flag(),
    "templates": Check(
        lambda value: _is_text(value) or _tuple_of(_is_text)(value),
        _is_template_choice,
        f"one of {', '.join(TEMPLATE_LISTS)}, or prompts that each hold {{}} once",
    ),
    "seed_mode": _one_of(SEED_MODES),
    "seed_scale": Check(
        _optional(_is_number),
        _optional(lambda value: math.isfinite(value) and value > 0),
        "a number > 0 or None",
    ),
    "background_words": Check(
        lambda value: _is_text(value) or _tuple_of(_is_text)(value),
        lambda value: value == "default" or (isinstance(value, tuple) and all(word.strip() for word in value)),
        "words, none of them empty, or 'default'",
    ),
    "probability_threshold": _number(lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    "criterion": _one_of(CRITERIA),
    "temperature": _number(lambda value: value > 0, "a number > 0"),
    "keep": _optional_integer(1, "an integer >= 1 or None"),
    "window": Check(
        _int_or_pair,
        lambda value: all(side >= 1 and side % 2 == 1 for side in _sides(value)),
        "an odd integer >= 1 (tokens), or two of them",
    ),
    "cells": Check(
        _optional(_int_or_pair),
        _optional(lambda value: all(side >= 1 for side in _sides(value))),
        "an integer >= 1, or two of them, or None",
    ),
    "beta": _number(lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    "walk": _flag(),
    "alpha": _number(lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "steps": _optional_integer(0, "an integer >= 0 or None"),
    "tolerance": Check(
        _optional(_is_number),
        _optional(lambda value: 0 < value < 1),
        "a number in (0, 1) or None",
    ),
    "limit_walk": _flag(),
    "backend": Check(_optional(_is_text), _optional(bool), "a backend's name or None"),
}
