"""When the persistent CUDA walk is taken: a pure rule of sizes, tried on made-up GPUs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._cuda import random_walk as persistent_walk
from nerve_kernels._cuda.walk_plan import Machine, WalkPlan, WalkSizes, candidates, is_worthwhile, plan_walk
from nerve_kernels._operators import dispatch


def machine(multiprocessors: int, kibibytes_per_block: int, kibibytes: int) -> Machine:
    """A GPU on which shared memory, of which each block costs 1 KiB more, and registers for 2 blocks are the limits."""
    return Machine(
        multiprocessors,
        kibibytes_per_block * 1024,
        lambda labels_per_lane, shared_bytes: min(2, kibibytes * 1024 // (shared_bytes + 1024)),
    )


LARGE, SMALL = machine(132, 227, 228), machine(128, 99, 100)
SIZES = WalkSizes(batch=1, labels=21, grid=(64, 64), window=(7, 7), cells=(16, 16))


def test_the_target_size_fills_a_large_gpu_with_everything_on_chip():
    plan = plan_walk(SIZES, LARGE)
    assert isinstance(plan, WalkPlan)
    assert (plan.tile, plan.labels_per_lane, plan.parts, plan.blocks) == ((8, 4), 6, 1, 128)
    assert plan.u_resident
    assert plan.cells_per_chunk == 256
    assert is_worthwhile(plan)


@pytest.mark.parametrize(
    ("changes", "gpu", "expected"),
    [
        ({}, LARGE, "persistent"),
        ({}, SMALL, "persistent"),
        ({"labels": 2}, SMALL, "persistent"),
        ({"labels": 42}, LARGE, "persistent"),
        ({"labels": 42}, SMALL, "per step"),  # fits with U streamed
        ({"labels": 171}, LARGE, "per step"),
        ({"labels": 171}, SMALL, "looped"),
        ({"labels": 600}, LARGE, "looped"),
        ({"labels": 33, "batch": 64}, SMALL, "looped"),
        ({"cells": (32, 32)}, LARGE, "persistent"),
        ({"cells": (32, 32)}, SMALL, "per step"),
        ({"cells": (0, 0)}, SMALL, "persistent"),  # local only
        ({"window": (0, 0)}, SMALL, "persistent"),  # global only
        ({"grid": (37, 37)}, SMALL, "persistent"),
        ({"grid": (32, 32), "batch": 4}, LARGE, "persistent"),
        ({"grid": (32, 32), "batch": 64}, LARGE, "looped"),
        ({"grid": (256, 256), "labels": 19, "cells": (32, 32)}, LARGE, "refused"),
        ({"grid": (128, 128), "labels": 150, "cells": (32, 32)}, LARGE, "looped"),
        ({"grid": (128, 128), "labels": 150, "cells": (32, 32), "window": (21, 21)}, SMALL, "refused"),
    ],
)
def test_the_rule(changes, gpu, expected):
    plan = plan_walk(dataclasses.replace(SIZES, **changes), gpu)
    assert isinstance(plan, str) == (expected == "refused")
    assert is_worthwhile(plan) == (expected == "persistent")
    if isinstance(plan, WalkPlan):
        assert (plan.rounds > 1) == (expected == "looped")


def test_every_plan_fits_and_covers_the_walk():
    for batch, labels, side, gpu in itertools.product((1, 7), (1, 8, 21, 33, 600), (5, 24, 64), (LARGE, SMALL)):
        sizes = dataclasses.replace(SIZES, batch=batch, labels=labels, grid=(side, side + 3), cells=(4, 5))
        plan = plan_walk(sizes, gpu)
        assert isinstance(plan, WalkPlan)
        assert dataclasses.replace(plan, teams=plan.parts) in set(candidates(sizes))
        assert plan.parts // batch * plan.labels_per_lane * 4 >= labels
        assert plan.parts % batch == 0
        assert plan.tiles == math.ceil(side / plan.tile[0]) * math.ceil((side + 3) / plan.tile[1])
        held = gpu.resident_blocks(plan.labels_per_lane, plan.shared_bytes) * gpu.multiprocessors
        # no more teams than there is room or work for, and no fewer
        assert plan.teams == min(plan.parts, held // plan.tiles)
        assert plan.shared_bytes <= gpu.shared_bytes_per_block


def test_neither_batch_nor_labels_are_too_many():
    for batch, labels in ((1, 600), (64, 21), (10**6, 10**6)):
        assert isinstance(plan_walk(dataclasses.replace(SIZES, batch=batch, labels=labels), SMALL), WalkPlan)


def test_a_part_more_costs_its_waits():
    plan = plan_walk(dataclasses.replace(SIZES, labels=171), SMALL)  # 22 parts of 8 labels would be padded less
    assert isinstance(plan, WalkPlan)
    assert (plan.labels_per_lane, plan.parts, plan.teams, plan.rounds) == (6, 8, 1, 8)


def test_what_does_not_fit_is_said_in_numbers():
    too_many = plan_walk(dataclasses.replace(SIZES, grid=(512, 512)), LARGE)
    assert isinstance(too_many, str)
    assert "the blocks that walk one image must be on the GPU at once: 512 × 512 tokens" in too_many
    assert "take at least 2048, of 87248 bytes of shared memory each, and 132 multiprocessors hold 264" in too_many
    too_wide = plan_walk(dataclasses.replace(SIZES, window=(127, 127)), SMALL)
    assert isinstance(too_wide, str)
    assert "for a window of 127 × 127 and 16 × 16 cells, this GPU gives a block at most 101376" in too_wide


class TestChoice:
    """Of the backends that can run, the first that is preferred; plain PyTorch only where nothing else can."""

    @pytest.fixture
    def operation(self, monkeypatch):
        monkeypatch.setitem(dispatch._operations, "walk", {})
        return "walk"

    def choose(self, operation, *, preferred, triton, argument=1, backend=None):
        dispatch.register(
            operation,
            "cuda",
            dispatch.Implementation(
                lambda tensor, argument: "cuda",
                why_not=lambda tensor, argument: None if argument > 0 else "it is too large",
                is_preferred=lambda tensor, argument: preferred,
            ),
        )
        if triton:
            dispatch.register(operation, "triton", dispatch.Implementation(lambda *arguments: "triton"))
        dispatch.register(operation, "eager", dispatch.Implementation(lambda *arguments: "eager"))
        on_gpu = torch.empty(1, device="meta")
        return dispatch.choose(operation, backend, on_gpu, argument)(on_gpu, argument)

    def test_persistent_where_worthwhile(self, operation):
        assert self.choose(operation, preferred=True, triton=True) == "cuda"

    def test_triton_where_not(self, operation):
        assert self.choose(operation, preferred=False, triton=True) == "triton"

    def test_persistent_rather_than_plain_pytorch(self, operation):
        assert self.choose(operation, preferred=False, triton=False) == "cuda"

    def test_triton_where_it_does_not_fit(self, operation):
        assert self.choose(operation, preferred=True, triton=True, argument=0) == "triton"

    def test_a_named_backend_overrides(self, operation):
        assert self.choose(operation, preferred=False, triton=True, backend="cuda") == "cuda"
        assert self.choose(operation, preferred=True, triton=True, backend="triton") == "triton"

    def test_a_named_backend_raises_its_reason(self, operation):
        reason = r"cannot run: it is too large\..*one of: triton, eager"
        with pytest.raises(dispatch.BackendUnavailableError, match=reason):
            self.choose(operation, preferred=True, triton=True, argument=0, backend="cuda")


def test_affinities_that_the_persistent_walk_does_not_take():
    seeds, u = torch.ones(1, 4, 2), torch.ones(1, 4, 3)
    for start, affinity, reason in [
        (seeds, AffinityArguments(dense=torch.ones(1, 4, 4)), "got a dense affinity"),
        (seeds, AffinityArguments(u=u, v=u, grid=(2, 2)), "got explicit factors u and v"),
        (seeds[:0], AffinityArguments(u, grid=(2, 2)), "the seeds are empty"),
    ]:
        assert reason in persistent_walk.why_affinity_unsupported(start, affinity)
        assert persistent_walk.why_unsupported(start, affinity, 0.9, 3, True) == "it runs on cuda tensors, got cpu"
