"""Every Triton kernel compiled for GPUs that are not here: no spills, tensor cores in use, wide loads.

A few cases of each kernel; ``python -m verification.static_grid`` compiles them all.
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from verification import static_grid
from verification.attention_launches import on_grid
from verification.inspection import TARGETS, Compiled, compile_for

from nerve_kernels._triton.pixels import best_labels

CASES = [
    ("fp16", 40, "sm_90"),
    ("bf16", 80, "sm_80"),
    ("fp32", 160, "sm_90"),
    ("fp16", 160, "gfx942"),
    ("fp32", 0, "sm_100"),
    ("bf16", 0, "sm_90"),
    ("fp16", 0, "sm_80"),
    ("tf32", 0, "sm_120"),
    ("fp16", 0, "gfx942"),
    ("bf16", 0, "gfx942"),
]


@pytest.mark.parametrize(("precision", "head_size", "target"), CASES, ids=str)
def test_kernels_compile_without_faults(precision, head_size, target):
    compiled = 0
    for operation, launch in static_grid.launches(precision, head_size, target):
        if "@" in operation:
            continue
        result = compile_for(launch, target)
        assert static_grid.faults(launch, precision, target, result) == [], operation
        compiled += 1
    # two of maps, labels of pixels, the walk's step, last step and adjoint, the four launches on a packed affinity, and
    # a step on a stencil and on a graph; gradients of window values and of U are float32
    without_a_head = {"fp32": 15, "tf32": 9}.get(precision, 13)
    # of q and k: six operators, and two launches for the gradient of two
    assert compiled == (10 if head_size else without_a_head)


def test_tf32_is_used_where_torch_allows_it():
    launches = dict(static_grid.launches("tf32", 64, "sm_80"))
    launch = launches["attention_entropy"]
    assert launch.constants["PRECISION"] == "tf32"
    assert compile_for(launch, "sm_80").tensor_core_instructions > 0
    launch = dict(static_grid.launches("fp32", 64, "sm_80"))["attention_entropy"]
    assert launch.constants["PRECISION"] == "ieee"
    assert compile_for(launch, "sm_80").tensor_core_instructions == 0


def test_launches_are_planned_as_on_a_machine_with_the_target():
    before = torch.version.hip
    for target, expected in (("sm_90", "tf32"), ("gfx942", "ieee")):
        launch = dict(static_grid.launches("fp16", 0, target))["random_walk"]
        assert launch.constants["HALF_PRECISION"] == expected
    for target, expected in (("sm_90", "tf32x3"), ("sm_80", "ieee"), ("sm_120", "ieee"), ("gfx942", "ieee")):
        launch = dict(static_grid.launches("fp32", 64, target))["attention_statistics"]
        assert launch.constants["PRECISION"] == expected
    assert torch.version.hip == before


def test_a_grid_of_one_row_compiles():
    """Triton makes constants of arguments that are 1, and a constant has no ``.to``."""
    launches = on_grid(torch.float16, 40, (1, 96), (1, 7), (1, 16))
    for operation in ("local_affinity", "global_affinity", "attention_statistics"):
        for launch in launches[operation]:
            assert compile_for(launch, "sm_90").spills == 0
    planes, labels = (torch.empty(1, 1, 1, 1, dtype=dtype, device="meta") for dtype in (torch.float16, torch.int64))
    assert compile_for(best_labels.plan(planes, labels[0], 0.5, -1), "sm_90").spills == 0


def test_faults_are_found():
    """The checks themselves: a configuration that is known to spill, and one that asks for too much."""
    operation, launch = next(static_grid.launches("fp16", 40, "sm_80"))
    result = compile_for(launch, "sm_80")
    assert operation == "attention_entropy"
    for change, fault in [
        ({"spills": 3}, "3 spills"),
        ({"tensor_core_instructions": 0}, "no tensor-core instruction"),
        ({"loads_of_128_bits": 0}, "no 128-bit load"),
        ({"shared_bytes": 200_000}, "200000 bytes of shared memory"),
    ]:
        worse = type(result)(**{**vars(result), **change})
        assert any(fault in found for found in static_grid.faults(launch, "fp16", "sm_80", worse))


def test_only_an_old_triton_may_copy_float16_in_halves(monkeypatch):
    for precision, version, excused in (("fp16", "3.6.0", True), ("fp16", "3.8.0", False), ("bf16", "3.6.0", False)):
        monkeypatch.setattr(static_grid.triton, "__version__", version)
        launch = dict(static_grid.launches(precision, 0, "sm_90"))["random_walk"]
        narrow = Compiled(100, 0, 0, 8, 0, 1000)
        assert (static_grid.faults(launch, precision, "sm_90", narrow) == []) == excused


def test_spills_are_seen_in_the_machine_code():
    """One warp for a tile made for eight: the registers cannot suffice."""
    launch = dict(static_grid.launches("fp16", 160, "sm_80"))["fuse_attention"]
    crowded = type(launch)(**{**vars(launch), "warps": 1})
    assert compile_for(crowded, "sm_80").spills > 0


def test_every_target_has_a_limit_of_shared_memory():
    assert set(TARGETS) == set(static_grid.SHARED_MEMORY_LIMIT)
