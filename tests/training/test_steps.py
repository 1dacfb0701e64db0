"""Every step of ``python -m training`` names a function that is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from training.__main__ import MINUTES, STEPS


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_a_function_of_a_module(step: str) -> None:
    module, _, function = STEPS[step].partition(":")
    # found, not imported: the steps need what only [training] installs
    spec = importlib.util.find_spec(f"training.{module}")
    assert spec is not None
    assert spec.origin is not None
    arguments = "minutes: float" if step in MINUTES else ""
    assert f"def {function}({arguments}" in Path(spec.origin).read_text(encoding="utf-8")
