"""The walk on a packed affinity in Triton's interpreter, whole and broken: run by test_interpreted.py.

Grids give at least two tiles along each axis, more than one block of U's columns and of the halo, and remainders.
"""

from __future__ import annotations

import pytest
import torch
from tests.triton.mutation import kernels_with
from tests.triton.walk_problems import Problem, random_walk

from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.walk import packing
from nerve_kernels._triton.walk import random_walk as triton_walk
from nerve_kernels._triton.walk.packed_step import PackedStep
from nerve_kernels._triton.walk.walk_step import Step

EVEN = {"grid": (12, 12), "window": (3, 5), "cells": (6, 6), "steps": 3}


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were started."""
    names: list[str] = []
    original = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (names.append(self.kernel.__name__), original(self)))
    return names


@pytest.mark.parametrize(
    "options",
    [
        EVEN,
        {**EVEN, "kind": "local", "labels": 70},
        {**EVEN, "kind": "cells", "steps": 4},
        {**EVEN, "dtype": torch.float16, "batch": 2, "affinity_batch": 2, "labels": 33},
        {**EVEN, "seeds_dtype": torch.float16, "batch": 2, "labels": 70},
        {**EVEN, "seeds_dtype": torch.float16, "normalize": False},
        {**EVEN, "labels": 1, "normalize": False},
        {"grid": (12, 20), "window": (5, 7), "cells": (6, 10), "steps": 4, "labels": 16},
        {"grid": (10, 22), "window": (1, 1), "kind": "local", "steps": 3},
        {"grid": (15, 32), "window": (3, 9), "cells": (3, 4), "steps": 3},  # 40 tokens of a cell in 64 slots
        {"grid": (24, 16), "window": (3, 3), "cells": (3, 2), "steps": 3},  # a cell is a tile
        {"grid": (12, 16), "window": (1, 31), "cells": (3, 4), "steps": 3},  # halos wider than a block
        {"grid": (1, 40), "window": (1, 3), "cells": (1, 10), "steps": 3},
        {"grid": (10, 4), "window": (19, 7), "kind": "local", "steps": 3},
    ],
    ids=str,
)
def test_walks(options, launched):
    random_walk(triton_walk.run, **options)
    divided = ["divide_rows_kernel"] * (options.get("normalize", True) and options.get("labels", 5) > 64)
    expected = ["pack_affinity_kernel", *["packed_step_kernel"] * (options["steps"] + 1), *divided]
    assert launched == expected


@pytest.mark.parametrize(
    "options",
    [
        {**EVEN, "steps": packing.MIN_PACKED_STEPS - 1},
        {**EVEN, "cells": (5, 6)},  # uneven
        {**EVEN, "grid": (12, 27), "cells": (4, 3)},  # a tile is 9 tokens wide
        {"grid": (26, 28), "cells": (2, 2), "steps": 3},  # 182 tokens of a cell
        {"grid": (4, 6), "cells": (4, 6), "steps": 3},  # cells of a token
        {"kind": "dense", "steps": 3},
        {"kind": "factors", "steps": 3},
    ],
    ids=str,
)
def test_what_is_not_packed_walks_as_it_is(options, launched):
    random_walk(triton_walk.run, **options)
    assert "walk_step_kernel" in launched
    assert "pack_affinity_kernel" not in launched


def test_what_would_take_too_much_memory_is_not_packed(launched, monkeypatch):
    problem = Problem(**EVEN)
    operator = triton_walk.packed_operator(*problem.arguments()[:4])
    step = operator.step
    state = torch.empty(step.state_size(), dtype=step.terms.state)
    needed = step.packed.nbytes + 2 * state.nbytes
    for limit, packed in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(packing, "MAX_PACKED_BYTES", limit)
        launched.clear()
        random_walk(triton_walk.run, **EVEN)
        assert ("pack_affinity_kernel" in launched) == packed


def test_launches_are_planned_once_a_walk(monkeypatch):
    """Whatever the number of steps: preparation, a step, the last step; as it is, a first step as well."""
    planned = []

    def counted(plan):
        return lambda *arguments, **options: (planned.append(plan), plan(*arguments, **options))[1]

    for kind in (Step, PackedStep):
        monkeypatch.setattr(kind, "plan", counted(kind.plan))
    for options in (EVEN, {**EVEN, "cells": (5, 6)}, {**EVEN, "kind": "factors"}):
        counts = []
        for steps in (3, 4):
            planned.clear()
            random_walk(triton_walk.run, **{**options, "steps": steps})
            counts.append(len(planned))
        assert counts == [3, 3], options


def test_the_same_bits_every_time_and_strides_do_not_matter():
    seeds, affinity, *options = Problem(**EVEN, batch=2, affinity_batch=2).arguments()
    plain = triton_walk.run(seeds, affinity, *options)
    assert torch.equal(triton_walk.run(seeds, affinity, *options), plain)

    def apart(tensor):
        return tensor.transpose(0, 2).contiguous().transpose(0, 2)

    assert torch.equal(triton_walk.run(apart(seeds), affinity.map(apart), *options), plain)


def test_parts_of_two_dtypes_lose_nothing():
    seeds, affinity, *options = Problem(**EVEN).arguments()
    rounded = affinity._replace(u=affinity.u.half())
    widened = affinity._replace(u=rounded.u.float())
    assert torch.equal(triton_walk.run(seeds, rounded, *options), triton_walk.run(seeds, widened, *options))


HALF = {**EVEN, "dtype": torch.float16}
# (file, what is replaced, by what, options of the problem)
MUTANTS = {
    "a block of weights is forgotten": ("packed_step", "range(blocks)", "range(blocks - 1)", EVEN),
    "weights do not advance": ("packed_step", "weights_at += tile_slots * COLUMNS", "weights_at += 0", EVEN),
    "P of the next tile": ("packed_step", "halo = top * pitch + left", "halo = top * pitch", EVEN),
    "T from the first row": ("packed_step", "(grid_rows - halo_blocks * down)", "(0 - halo_blocks * down)", EVEN),
    "shares are exchanged": (
        "packed_step", "part < halo_blocks, local_share", "part >= halo_blocks, local_share", EVEN,
    ),
    "the restart is skipped": ("packed_step", "restart_share * total)", "0.0 * total)", EVEN),
    "states are not exchanged": ("random_walk", "states[(index + 1) % 2])", "states[index % 2])", EVEN),
    "the low term of P is dropped": ("packed_step", "low = tl.trans(tl.load(x_at + offset + plane))", "low *= 0", EVEN),
    "the low term of weights is dropped": (
        "packed_step", "tl.dot(weights - weights_high, high", "tl.dot(0.0 * weights_high, high", EVEN,
    ),
    "float16: the low term of P is dropped": (
        "packed_step", "tl.dot(weights, low, input", "tl.dot(weights, 0.0 * low, input", HALF,
    ),
    "off the window": ("packing", "(window_x < WINDOW_COLUMNS)", "(window_x < WINDOW_COLUMNS - 1)", EVEN),
    "off the grid": ("packing", " & on_grid[None, :]", "", {**EVEN, "kind": "local"}),
    "the last column of U is forgotten": ("packing", "(rank < ranks)", "(rank < ranks - 1)", EVEN),
    "the margin is forgotten": ("packed_step", "+ left + token_x + MARGIN", "+ left + token_x", EVEN),
    "cells are averaged over their slots": (
        "packed_step", "/ (BLOCK_ROWS * BLOCK_COLUMNS)", "/ SLOTS",
        {"grid": (15, 32), "window": (3, 9), "cells": (3, 4), "steps": 3},
    ),
    "rows are not divided": ("packed_step", "if NORMALIZE:", "if False:", EVEN),
    "one affinity for all where each has its own": (
        "packed_step", "packed + batch * packed_batch", "packed", {**EVEN, "batch": 2, "affinity_batch": 2},
    ),
    "all of a batch walk from the first": (
        "packed_step", "state = batch * plane", "state = 0 * plane", {**EVEN, "batch": 2},
    ),
    "tiles wider than they are": ("packing", "self.margin + self.tile[1] + self.reach[1]", "self.tile[1]", EVEN),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails(mutant, tmp_path):
    file, original, replacement, options = MUTANTS[mutant]
    with (
        kernels_with("random_walk", file, original, replacement, tmp_path) as broken,
        pytest.raises(AssertionError),
    ):
        random_walk(broken, **options)


def test_an_unbroken_copy_passes(tmp_path):
    with kernels_with("random_walk", "packing", "", "", tmp_path) as unbroken:
        random_walk(unbroken, **EVEN)
