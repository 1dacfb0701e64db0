"""A plugin of pytest for the runs on mutants: which tests run first, and how long each one takes.

Tests that execute the mutant's line come first, and of these the quick ones; all others follow, so that one process
runs the whole area, once. Those in a browser come last: what they catch is what no other test does.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

BROWSER = "test_browser.py"
ORDER, DURATIONS = "MUTATION_ORDER", "MUTATION_DURATIONS"  # variables that name files

_seconds: defaultdict[str, float] = defaultdict(float)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests in the order of the file; those it does not name come last."""
    if ORDER in os.environ:
        names = json.loads(Path(os.environ[ORDER]).read_text(encoding="utf-8"))
        place = {name: i for i, name in enumerate(names)}
        items.sort(key=lambda item: place.get(item.nodeid, len(place)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what a test takes; what it sets up for others is not its own."""
    if report.when == "call":
        _seconds[report.nodeid] += report.duration


def pytest_sessionfinish() -> None:
    """Write down what each test took."""
    if DURATIONS in os.environ:
        Path(os.environ[DURATIONS]).write_text(json.dumps(_seconds), encoding="utf-8")


def in_order(durations: dict[str, float], executing: list[str]) -> list[str]:
    """All tests of an area: first those that execute a line, and of both kinds the quickest first; browsers last.

    Example:
        >>> in_order({"slow": 9.0, "quick": 0.1, "other": 0.0, "test_browser.py": 0.0}, ["slow", "quick"])
        ['quick', 'slow', 'other', 'test_browser.py']
    """
    chosen = set(executing)
    return sorted(durations, key=lambda name: (BROWSER in name, name not in chosen, durations[name], name))
