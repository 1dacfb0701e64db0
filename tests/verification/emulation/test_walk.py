"""The persistent CUDA walk, run on the CPU: every way of laying it out, under several schedules, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .emulated_walk import Case, walk

SCHEDULES = range(5)
HALF, BFLOAT16 = torch.float16, torch.bfloat16

CASES = {
    "whole cells in each tile": Case(
        (16, 12), 21, 0.5, labels_per_lane=6, tile=(8, 4), window=(5, 5), cells=(4, 3), steps=4
    ),
    "cells across tiles, a window wider than a tile, 2 ranges of labels, bfloat16 storage": Case(
        (11, 9), 13, 0.3, labels_per_lane=2, tile=(8, 4), window=(3, 11), cells=(3, 5), values_dtype=BFLOAT16,
        u_dtype=BFLOAT16, steps=3,
    ),
    "a batch with affinities of its own, 2 warp groups, float16": Case(
        (9, 10), 13, 0.6, labels_per_lane=4, tile=(8, 8), window=(7, 3), cells=(4, 4), batch=2, affinity_batch=2,
        seeds_dtype=HALF, values_dtype=HALF, u_dtype=HALF,
    ),
    "local only, not normalised, a shared affinity": Case(
        (10, 9), 8, 0.0, labels_per_lane=2, tile=(8, 4), window=(5, 7), batch=2, normalize=False
    ),
    "global only, u streamed in uneven chunks": Case(
        (20, 17), 30, 1.0, labels_per_lane=8, tile=(8, 16), cells=(9, 8), streamed_cells=32, u_dtype=BFLOAT16
    ),
    "u streamed, one tile of 256 tokens, mixed storage": Case(
        (13, 15), 6, 0.5, labels_per_lane=2, tile=(16, 16), window=(5, 5), cells=(8, 8), streamed_cells=64,
        values_dtype=HALF, u_dtype=BFLOAT16, seeds_dtype=BFLOAT16,
    ),
    "2 teams for 6 parts, normalised, affinities of their own": Case(
        (14, 6), 19, 0.5, labels_per_lane=2, tile=(8, 4), window=(5, 3), cells=(3, 2), batch=2, affinity_batch=2,
        teams=2,
    ),
    "1 team for 6 parts, normalised, global only, u streamed, float16": Case(
        (13, 7), 19, 1.0, labels_per_lane=2, tile=(8, 8), cells=(9, 5), streamed_cells=32, batch=2, teams=1, steps=2,
        seeds_dtype=HALF,
    ),
    "3 teams for 4 parts, not normalised, local only, a shared affinity, bfloat16": Case(
        (9, 6), 30, 0.0, labels_per_lane=4, tile=(8, 4), batch=2, teams=3, normalize=False, seeds_dtype=BFLOAT16,
    ),
    "2 teams for 3 parts, an image each, a range of labels for each": Case(
        (10, 5), 5, 0.4, labels_per_lane=2, tile=(8, 4), batch=3, affinity_batch=3, teams=2,
    ),
    "one row of tokens, no steps": Case(
        (1, 13), 3, 0.5, labels_per_lane=2, tile=(8, 4), window=(1, 5), cells=(1, 5), steps=0
    ),
}  # fmt: skip
TOLERANCE = {torch.float32: 1e-6, HALF: 5e-4, BFLOAT16: 4e-3}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference_under_every_schedule(name: str, walk_on_cpu: Path, tmp_path: Path) -> None:
    case = CASES[name]
    results = []
    for seed in SCHEDULES:
        result, error = walk(walk_on_cpu, case, seed, tmp_path)
        assert error < TOLERANCE[case.seeds_dtype], f"schedule {seed}"
        results.append(result)
    # sums are taken in a fixed order: no schedule changes a bit
    assert all(torch.equal(result, results[0]) for result in results)
