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
    "map entropy: the last keys are forgotten": (
        "attention_map_entropy", "attention_map_entropy", "range(0, keys, KEYS)", "range(0, keys - KEYS, KEYS)", {},
    ),
    "fused maps: weights are left out": (
        "fuse_attention_maps", "fuse_attention_maps", "total += weight * tl", "total += tl", {},
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
