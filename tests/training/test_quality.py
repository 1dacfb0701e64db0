"""The committed quality table: the promised columns, and a default preset that is what validation chose."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.presets import PRESETS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
METHODS = ["clip", "clip+walk uniform", "clip+walk entropy", "clip+walk information", "local only", "global only"]


def own_words() -> dict[str, dict[str, Any]]:
    """What was selected for images that are asked for their own words: what the preset is for."""
    summary = json.loads((RESULTS / "embedded_quality.json").read_text(encoding="utf-8"))
    return summary["vocabularies"]["own words"]


def test_the_table_has_every_method_with_its_selection_and_score():
    with (RESULTS / "embedded_quality.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == METHODS
    assert list(rows[0]) == ["method", "selected_on_validation", "miou"]
    details = own_words()
    for row in rows:
        assert 0 < float(row["miou"]) < 1
        for name in details[row["method"]]["selected_on_validation"]:
            assert f"{name}=" in row["selected_on_validation"]


def test_the_embedded_preset_is_the_best_on_validation():
    details = own_words()
    best = max(details.values(), key=lambda method: method["validation_miou"])
    assert PRESETS["embedded"].config == NerveConfig.from_json(json.dumps(best["config"]))
