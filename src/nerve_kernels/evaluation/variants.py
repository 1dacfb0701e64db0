"""Variants of the method: the switches of the command line, and the usual ablation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.config import NerveConfig

BASE = "method"

# What each row of an ablation changes. The first, which the command's own settings define, changes nothing.
ABLATION: Mapping[str, Mapping[str, Any]] = {
    BASE: {},
    "clip alone": {"walk": False},
    "heads uniform": {"criterion": "uniform"},
    "heads entropy": {"criterion": "entropy"},
    "heads information": {"criterion": "information"},
    "heads cell information": {"criterion": "cell_information"},
    "local only": {"beta": 0.0},
    "global only": {"beta": 1.0},
    "half of each": {"beta": 0.5},
    "1 step": {"steps": 1},
    "5 steps": {"steps": 5},
    "limit of the walk": {"limit_walk": True},
    "seeds cosine": {"seed_mode": "cosine"},
    "seeds cross_attention": {"seed_mode": "cross_attention"},
    "pixels as tokens": {"refine_pixels": None},
    "pixels walk": {"refine_pixels": "walk"},
    "pixels pamr": {"refine_pixels": "pamr"},
    "pixels lposs+": {"refine_pixels": "lposs+"},
}


def ablation(base: NerveConfig, vary: Sequence[str] = ()) -> dict[str, NerveConfig]:
    """A config for each row of an ablation around one config.

    Args:
        base: the config that each row changes in one place.
        vary: rows in place of the usual ones: ``"field=[value, ...]"``, the values in JSON.

    Returns:
        The base first, then the rows; rows that come to the same config as an earlier one are left out.

    Raises:
        ValueError, TypeError: a text that is not of that form, an unknown field, a value out of range.

    Example:
        >>> list(ablation(NerveConfig(), ["alpha=[0.5, 0.9]"]))
        ['method', 'alpha=0.5']
    """
    changes: dict[str, Mapping[str, Any]] = {BASE: {}} if vary else dict(ABLATION)
    for text in vary:
        field, values = parse_setting(text)
        if not isinstance(values, list):
            raise ValueError(refusal("vary", "a list of values, as in 'alpha=[0.5, 0.9]'", repr(text)))
        changes |= {f"{field}={json.dumps(value)}": {field: value} for value in values}
    rows: dict[str, NerveConfig] = {}
    for name, change in changes.items():
        config = base.replace(**change)
        if config not in rows.values():
            rows[name] = config
    return rows


def parse_setting(text: str) -> tuple[str, Any]:
    """A field and its value from ``"field=value"``, the value in JSON; what is not JSON is taken as text.

    Example:
        >>> parse_setting("clip_window=null"), parse_setting("templates=photo")
        (('clip_window', None), ('templates', 'photo'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(refusal("setting", "field=value, as in 'alpha=0.8'", repr(text)))
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value.strip()
    except (ValueError, RecursionError) as error:  # JSON, but thousands of digits or brackets
        raise ValueError(f"setting: {name.strip()}: expected a value, got {len(value)} characters ({error})") from None
