"""The walk's kernels broken on purpose: each mutant must fail the problem that the real kernel solves."""

from __future__ import annotations

import pytest
import torch
from tests.triton.mutation import kernels_with
from tests.triton.walk_problems import WALK_PROBLEMS

SMALL = {"grid": (4, 10), "cells": (2, 5)}
HALO_ROWS = "halo_valid = (halo < reached) & (y >= 0) & (y < height) & (x >= 0) & (x < width)"
# (operation, file, what is replaced, by what, options of the problem)
MUTANTS = {
    "the halo wraps around the grid's sides": (
        "random_walk", "walk_step", HALO_ROWS, HALO_ROWS.removesuffix(" & (x >= 0) & (x < width)"), SMALL,
    ),
    "the last part of the halo is forgotten": (
        "random_walk", "walk_step", "range(0, reached, HALO)", "range(0, reached - HALO, HALO)", {},
    ),
    "the halo is a row too short": (
        "random_walk", "walk_step", "(TILE_ROWS * BLOCK_ROWS + WINDOW_ROWS - 1) * halo_columns",
        "(TILE_ROWS * BLOCK_ROWS + WINDOW_ROWS - 2) * halo_columns", {"grid": (8, 8), "cells": (4, 4)},
    ),
    "tokens off the window count": (
        "random_walk", "walk_step", "mask = in_window & valid[:, None]", "mask = (column >= 0) & valid[:, None]", SMALL,
    ),
    "buffers of P are not swapped": ("random_walk", "random_walk", "buffers[(steps - step) % 2]", "buffers[0]", {}),
    "buffers of T are not swapped": (
        "random_walk", "random_walk", "pools[step % 2]", "pools[0]",
        {"grid": (4, 45), "cells": (1, 5), "steps": 4},
    ),
    "the restart is skipped": ("random_walk", "walk_step", "if RESTART:", "if False:", SMALL),
    "the last block of cells is forgotten": (
        "random_walk", "walk_step", "range(0, ranks, RANKS)", "range(0, ranks - RANKS, RANKS)", {},
    ),
    "cells are averaged over their slots": (
        "random_walk", "walk_step", "/ (BLOCK_ROWS * BLOCK_COLUMNS)", "/ SLOTS", {"grid": (6, 18), "cells": (2, 6)},
    ),
    "empty slots join the average": (
        "random_walk", "walk_step", "tl.where(mask, total, 0.0)", "total + 1", {"grid": (6, 18), "cells": (2, 6)},
    ),
    "shares are exchanged": (
        "random_walk", "walk_step", "global_share * float32_dot", "local_share * float32_dot", SMALL,
    ),
    "the low half of P is dropped": (
        "random_walk", "walk_step",
        'total = tl.dot(weights.to(tl.float32), p - high, total, input_precision="tf32")', "pass",
        {**SMALL, "dtype": torch.float16},
    ),
    "rows are not divided": ("random_walk", "walk_step", "if NORMALIZE:", "if False:", SMALL),
    "rows of several blocks are not divided": (
        "random_walk", "walk_pooling", "(value / mass)", "value", {**SMALL, "labels": 70},
    ),
    "uneven cells as if they were even": (
        "random_walk", "walk_pooling", "(cell_y + 1) * height // cell_rows",
        "cell_y * height // cell_rows + height // cell_rows", {"grid": (7, 11), "cells": (3, 4)},
    ),
    "a large cell's last round is forgotten": (
        "random_walk", "walk_pooling", "range(ROUNDS)", "range(ROUNDS - 1)", {"grid": (9, 9), "cells": (1, 1)},
    ),
    "one affinity for all where each has its own": (
        "random_walk", "walk_step", "values_base = values + batch * values_batch", "values_base = values",
        {**SMALL, "batch": 2, "affinity_batch": 2},
    ),
    "the adjoint walks S, not its transpose": (
        "random_walk_backward", "walk_step", "if TRANSPOSED:", "if False:", SMALL,
    ),
    "the adjoint spreads without the cell's size": (
        "random_walk_backward", "walk_step", "(global_share / (cell_height * cell_width).to(tl.float32))[:, None]",
        "global_share", SMALL,
    ),
    "the gradient of values forgets earlier steps": (
        "random_walk_backward", "walk_gradients", "tl.load(at, mask=mask, other=0.0) + share", "share", SMALL,
    ),
    "the gradient of values forgets a batch": (
        "random_walk_backward", "walk_gradients", "range(batches)", "range(batches - 1)", {**SMALL, "batch": 2},
    ),
    "the gradient of values forgets labels": (
        "random_walk_backward", "walk_gradients", "range(0, labels, LABELS)", "range(0, labels - LABELS, LABELS)",
        {**SMALL, "labels": 33},
    ),
    "the gradient of U forgets earlier segments": (
        "random_walk_backward", "u_gradient", "tl.load(at, mask=mask, other=0.0) + share", "share",
        {**SMALL, "steps": 4},
    ),
    "the gradient of U forgets a step of a segment": (
        "random_walk_backward", "u_gradient", "range(steps * batches)", "range((steps - 1) * batches)",
        {**SMALL, "steps": 4},
    ),
    "the gradient of U takes another image's": (
        "random_walk_backward", "u_gradient", "first * batches + turn % batches", "first * batches",
        {**SMALL, "steps": 4, "batch": 2},
    ),
    "the gradient of U forgets labels": (
        "random_walk_backward", "u_gradient", "range(0, labels, LABELS)", "range(0, labels - LABELS, LABELS)",
        {**SMALL, "labels": 33},
    ),
    "P of a segment is overwritten before it is used": (
        "random_walk_backward", "random_walk_backward", "backward.step_back(states[step], p, adjoint)",
        "backward.step_back(states[step], states[step], adjoint)", {**SMALL, "steps": 4},
    ),
    "the adjoint forgets the division of rows": (
        "random_walk_backward", "random_walk_backward", "if normalize:", "if False:", SMALL,
    ),
    "window product: off the window": (
        "window_product", "walk_step", "(window_x < WINDOW_COLUMNS)", "(window_x < WINDOW_COLUMNS - 1)", SMALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails(mutant, tmp_path):
    operation, file, original, replacement, options = MUTANTS[mutant]
    with (
        kernels_with(operation, file, original, replacement, tmp_path) as broken,
        pytest.raises(AssertionError),
    ):
        WALK_PROBLEMS[operation](broken, **options)


@pytest.mark.parametrize("operation", WALK_PROBLEMS)
def test_an_unbroken_copy_passes(operation, tmp_path):
    with kernels_with(operation, operation, "", "", tmp_path) as unbroken:
        WALK_PROBLEMS[operation](unbroken, **SMALL)
