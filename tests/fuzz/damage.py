"""Random damage to files: to their bytes, and to the fields of what they hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

HOSTILE_JSON: tuple[Any, ...] = (
    None, True, False, "", "cat", "\ud800", "9" * 5000, 0, 1, -1, 2, 0.5, 1.0, -0.0, 1e308, float("nan"),
    float("inf"), 2**31, 2**63, 10**30, -(10**30), [], [[]], {}, [1], [1, 2], [0, 0], [-1, 1], [1.0, 2.0],
    ["a", "b"], [[1, 2]], {"a": 1},
)  # fmt: skip


def damaged_bytes(draw: st.DrawFn, content: bytes, *, mostly_before: int | None = None) -> bytes:
    """The file cut short, with some bytes changed, with some more, some set to zero, or a part of it twice.

    Args:
        draw: Hypothesis's.
        content: The whole file.
        mostly_before: Change bytes before this place only; None: anywhere.
    """
    how = draw(st.sampled_from(["cut", "change", "insert", "zeros", "repeat"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + draw(st.binary(max_size=16)) + content[at:]
    if how == "zeros":
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    if how == "repeat":
        return content[:at] + content[at // 2 :]
    changed = bytearray(content)
    last = len(content) - 1 if mostly_before is None else min(len(content) - 1, mostly_before)
    for position in draw(st.lists(st.integers(0, last), min_size=1, max_size=4)):
        changed[position] = draw(st.integers(0, 255))
    return bytes(changed)


def damaged_json(draw: st.DrawFn, value: Any) -> Any:
    """A copy of what JSON can hold with one part replaced, taken out, or there twice."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(HOSTILE_JSON))
    key = draw(st.sampled_from(keys))
    copy = value.copy()
    how = draw(st.sampled_from(["inside", "inside", "inside", "remove", "another's"]))
    if how == "inside":
        copy[key] = damaged_json(draw, value[key])
    elif how == "remove":
        del copy[key]
    elif isinstance(copy, list):
        copy.append(value[key])
    else:
        copy[key] = value[draw(st.sampled_from(keys))]
    return copy
