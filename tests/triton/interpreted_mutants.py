"""Kernels broken on purpose: each mutant must fail the problem that the real kernel solves. See test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
from tests.triton.interpreted_problems import PROBLEMS
from tests.triton.mutation import kernels_with

SWAPPED = """        l = factor * l  # noqa: E741
        t = factor * (t + l * delta)  # before l: it needs the old one
"""
STRAIGHT = """        t = factor * (t + l * delta)  # before l: it needs the old one
        l = factor * l  # noqa: E741
"""
# (operation, file, what is replaced, by what, options of the problem)
MUTANTS = {
    "a missing key mask": ("attention_entropy", "attention_entropy", "if MASK_KEYS:", "if False:", {}),
    "t is not shifted": ("attention_entropy", "attention_entropy", "(t + l * delta)", "t", {}),
    "t is not rescaled": ("attention_entropy", "attention_entropy", "t = factor * (t + l * delta)", "t = t", {}),
    "l is not rescaled": ("attention_entropy", "attention_entropy", "l = factor * l", "l = l", {}),
    "l is rescaled before t": ("attention_entropy", "attention_entropy", STRAIGHT, SWAPPED, {}),
    "the last key block is forgotten": (
        "attention_entropy", "attention_entropy", "range(0, keys, KEYS)", "range(0, keys - KEYS, KEYS)", {},
    ),
    "the rest of the head is forgotten": ("attention_entropy", "attention_entropy", "if REST > 0:", "if False:", {}),
    "columns beyond the head are read": (
        "attention_entropy", "tiles", "if START + WIDTH > SIZE:", "if False:", {"heads": 1, "keys": 60, "queries": 60},
    ),
    "marginal: missing rows count": (
        "attention_marginal", "attention_marginal", 'other=float("inf")', "other=0.0", {},
    ),
    "marginal: the last rows are forgotten": (
        "attention_marginal", "attention_marginal", "range(0, queries, ROWS)", "range(0, queries - ROWS, ROWS)", {},
    ),
    "fused: heads share their queries": ("fuse_attention", "tiles", "q_base += q_head * Q_ALIGN", "pass", {}),
    "fused: heads share their keys": ("fuse_attention", "tiles", "k_base += k_head * K_ALIGN", "pass", {}),
    "fused: weights are left out": ("fuse_attention", "tiles", "total += weight * tl", "total += tl", {}),
    "fused: the rest of the head is forgotten": ("fuse_attention", "tiles", "if REST > 0:", "if False:", {}),
    "local: keys off the grid count": (
        "local_affinity", "local_affinity", "in_window & key_valid[None, :]", "in_window", {},
    ),
    "local: keys off the window count": (
        "local_affinity", "local_affinity", "in_window & key_valid[None, :]", "key_valid[None, :]", {},
    ),
    "local: rows are not normalised": ("local_affinity", "local_affinity", "if NORMALIZE:", "if False:", {}),
    "local: all tiles are in the first column": (
        "local_affinity", "local_affinity", "(tile % tiles_x) * TILE_COLUMNS", "(tile % tiles_x) * 0", {},
    ),
    "global: empty slots count": (
        "global_affinity", "global_affinity", "tl.where(key_valid[None, :], part, 0.0)", "part", {},
    ),
    "global: cells as if they were even": (
        "global_affinity", "global_affinity", "(cell_y + 1) * height // cell_rows",
        "cell_y * height // cell_rows + height // cell_rows", {},
    ),
    "global: the last round is forgotten": (
        "global_affinity", "global_affinity", "range(ROUNDS)", "range(ROUNDS - 1)", {"cells": (1, 1)},
    ),
    "statistics: the last keys are forgotten": (
        "attention_statistics", "cell_sums", "for tile in range(tiles)", "for tile in range(tiles - 1)", {},
    ),
    "statistics: cells keep what was summed under another maximum": (
        "attention_statistics", "cell_sums",
        "tl.store(at, whole.to(", "None if CLAMP else tl.store(at, whole.to(",
        {"gain": 60.0, "grid": (16, 12)},
    ),
    "statistics: the maximum is never searched for": (
        "attention_statistics", "attention_statistics", "> 0:\n        tl.debug_barrier()",
        "> 1:\n        tl.debug_barrier()", {"gain": 200.0, "grid": (16, 12)},
    ),
    "statistics: a row of cells keeps the sums of the last": (
        "attention_statistics", "cell_sums",
        "                sums = tl.zeros([ROWS, CELLS_EACH, 4], tl.float32)\n", "", {},
    ),
    "statistics: cells are in the order of threads": (
        "attention_statistics", "cell_sums", "cell = thread // PARTS * CELLS_EACH + column // (8 * PAIRS)",
        "cell = column // (8 * PAIRS) * CELL_THREADS + thread // PARTS", {"grid": (8, 16), "cells": (4, 8)},
    ),
    "statistics: a column of the window is shifted": (
        "attention_statistics", "attention_statistics", "rows % width - WINDOW_COLUMNS // 2",
        "rows % width - WINDOW_COLUMNS // 2 + 1", {},
    ),
    "statistics: a row of the window is forgotten": (
        "attention_statistics", "attention_statistics", "range(first_y, last_y + 1)", "range(first_y, last_y)", {},
    ),
    "statistics: what lies off the grid is left as it was": (
        "attention_statistics", "attention_statistics", "range(0, count, ZEROS)", "range(0, 0, ZEROS)", {},
    ),
    "statistics: the window is divided by its own sum": (
        "attention_statistics", "attention_statistics",
        "p = tl.exp2(score * unit - c[:, None]) * share[:, None]",
        "p = tl.where(picked, tl.exp2(score * unit - c[:, None]), 0.0)\n            p = p / tl.sum(p, 1)[:, None]", {},
    ),
    "statistics: sharp cells are divided by the sum that is not sharp": (
        "attention_statistics", "attention_statistics", "share = 1.0 / l_sharp", "share = 1.0 / l", {"sharpness": 2.0},
    ),
    "statistics: empty slots count": (
        "attention_statistics", "cell_sums", "z = tl.where(valid[None, :], z, NO_SCORE)", "pass",
        {"grid": (7, 11)},
    ),
    "statistics: empty slots count where cells are blurred": (
        "attention_statistics", "cell_sums", "p = tl.where(valid[None, :], p, 0.0)", "pass",
        {"grid": (7, 11), "sharpness": 0.01},
    ),
    "statistics: the lse of sharp cells is shifted as if they were not": (
        "attention_statistics", "attention_statistics", "(sharpness * c + tl.log2(l_sharp))",
        "(c + tl.log2(l_sharp))", {"sharpness": 2.0},
    ),
    "map entropy: the last keys are forgotten": (
        "attention_map_entropy", "attention_map_entropy", "range(0, keys, KEYS)", "range(0, keys - KEYS, KEYS)", {},
    ),
    "fused maps: weights are left out": (
        "fuse_attention_maps", "fuse_attention_maps", "total += weight * tl", "total += tl", {},
    ),
    "gradient of fused maps: weights are left out": (
        "fuse_attention_maps_gradient", "fuse_attention_maps_gradient", "(weight * g)", "g", {},
    ),
    "gradient of fused maps: all heads are the first": (
        "fuse_attention_maps_gradient", "fuse_attention_maps_gradient", "base += maps_head * MAPS_ALIGN", "pass", {},
    ),
    "gradient of fused maps: blocks share a place": (
        "fuse_attention_maps_gradient", "fuse_attention_maps_gradient",
        "sums + program * heads", "sums + batch * heads", {},
    ),
    "labels: the last of the best": ("best_labels", "best_labels", "value > best", "value >= best", {}),
    "labels: the last is forgotten": ("best_labels", "best_labels", "range(count)", "range(count - 1)", {}),
    "labels: pixels have no centres": ("best_labels", "best_labels", "+ 0.5) - 0.5", ") * 1.0", {}),
    "labels: rows below are forgotten": ("best_labels", "best_labels", "+ below * bottom_weight", "", {}),
    "labels: right tokens are forgotten": (
        "best_labels", "best_labels", "above += tl.load", "above += 0 * tl.load", {},
    ),
    "labels: nothing is below the threshold": ("best_labels", "best_labels", "best < threshold", "best < -1", {}),
    "labels: all images are the first": ("best_labels", "best_labels", "batch * planes_batch", "0 * planes_batch", {}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails(mutant, tmp_path):
    operation, file, original, replacement, options = MUTANTS[mutant]
    with (
        kernels_with(operation, file, original, replacement, tmp_path) as broken,
        pytest.raises(AssertionError),
    ):
        PROBLEMS[operation](broken, 40, torch.float32, **options)


@pytest.mark.parametrize("operation", PROBLEMS)
def test_an_unbroken_copy_passes(operation, tmp_path):
    with kernels_with(operation, operation, "", "", tmp_path) as unbroken:
        PROBLEMS[operation](unbroken, 40, torch.float32)
