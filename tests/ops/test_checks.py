"""The checks that the whole package shares: what they accept comes back, what they refuse is said in one form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nerve_kernels._operators import checks

ACCEPTED = [
    (checks.check_flag, True, {}, True),
    (checks.check_text, "cat", {}, "cat"),
    (checks.check_choice, "b", {"choices": ("a", "b")}, "b"),
    (checks.check_number, 1, {"low": 0, "high": 1, "wanted": "in [0, 1]"}, 1.0),
    (checks.check_count, 3, {"low": 1, "high": 3}, 3),
    (checks.check_pair, [2, 3], {"wanted": "two ints"}, (2, 3)),
    (checks.check_pair, 2, {"wanted": "two ints", "or_one": True}, (2, 2)),
    (checks.check_list, (1, 2), {"wanted": "numbers", "length": 2}, [1, 2]),
    (checks.check_type, Path(), {"kind": Path}, Path()),
]
REFUSED = [
    (checks.check_flag, 1, {}, TypeError, "x: expected True or False, got int"),
    (checks.check_text, None, {}, TypeError, "x: expected a text, got NoneType"),
    (checks.check_text, " ", {"wanted": "a word"}, ValueError, "x: expected a word, got ' '"),
    (checks.check_choice, "c", {"choices": ("a", "b", "d")}, ValueError, "x: expected 'a', 'b' or 'd', got 'c'"),
    (checks.check_choice, ["a"], {"choices": ("a",), "do": "see --help"}, ValueError, "x: expected 'a', got ['a']; see --help"),
    (checks.check_number, True, {"wanted": "> 0"}, TypeError, "x: expected a number > 0, got bool"),
    (checks.check_number, math.nan, {"wanted": "that is finite"}, ValueError, "x: expected a number that is finite, got nan"),
    (checks.check_number, 0, {"low": 0, "low_open": True, "wanted": "> 0"}, ValueError, "x: expected a number > 0, got 0.0"),
    (checks.check_number, 1, {"high": 1, "high_open": True, "wanted": "< 1"}, ValueError, "x: expected a number < 1, got 1.0"),
    (checks.check_count, 1.0, {}, TypeError, "x: expected an int ≥ 0, got float"),
    (checks.check_count, 4, {"low": 1, "high": 3}, ValueError, "x: expected an int from 1 to 3, got 4"),
    (checks.check_count, 0, {"low": 1, "wanted": "≥ 1 (pixels)"}, ValueError, "x: expected an int ≥ 1 (pixels), got 0"),
    (checks.check_count, 10**5000, {"low": 1, "high": 3}, ValueError, "x: expected an int from 1 to 3, got one of 16610 bits"),
    (checks.check_pair, "ab", {"wanted": "two ints"}, TypeError, "x: expected two ints, got 'ab'"),
    (checks.check_pair, (1, True), {"wanted": "two ints"}, TypeError, "x: expected two ints, got (1, True)"),
    (checks.check_list, "ab", {"wanted": "names"}, TypeError, "x: expected names, got str"),
    (checks.check_list, [1], {"wanted": "2 numbers", "length": 2}, ValueError, "x: expected 2 numbers, got 1"),
    (checks.check_type, 1, {"kind": Path}, TypeError, "x: expected a Path, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "value", "options", "expected"), ACCEPTED, ids=range(len(ACCEPTED)))
def test_what_fits_comes_back(check, value, options, expected):
    found = check("x", value, **options)
    assert (found, type(found)) == (expected, type(expected))
    assert checks.check_optional(check, "x", value, **options) == expected
    assert checks.check_optional(check, "x", None, **options) is None


@pytest.mark.parametrize(("check", "value", "options", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused_in_one_form(check, value, options, error, message):
    with pytest.raises(error) as raised:
        check("x", value, **options)
    assert str(raised.value) == message
