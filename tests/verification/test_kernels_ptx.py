"""The compiled kernels of windows, gradients and averages, interpreted; and that a merged mask in them is seen."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from tests.triton.mutation import kernels_with
from verification import kernels_ptx
from verification.kernels_ptx import (
    PtxCase,
    average_case,
    check,
    division_case,
    gradient_case,
    local_case,
    sparse_case,
)
from verification.walk_ptx import Compiled, compile_ptx

from nerve_kernels._triton.launch import Launch

# no multiples of 4 labels; sides that are no multiples of a tile
SMALL: dict[str, Callable[[], PtxCase]] = {
    "local_affinity": lambda: local_case(torch.float16, (3, 9), (3, 3)),
    "gradient": lambda: gradient_case((3, 9), (3, 3), 22),
    "average": lambda: average_case((5, 7), (2, 3), 22),
    "division": lambda: division_case(9, 22),
    "stencil": lambda: sparse_case("stencil", "walk", grid=(3, 4), dilations=(2,)),
    "graph's transpose": lambda: sparse_case("graph", "transpose", grid=(3, 4)),
}


@pytest.mark.parametrize("name", SMALL)
def test_compiled_kernels_are_right(name: str) -> None:
    assert check(SMALL[name]())["faults"] == ""


def as_if_labels_were_aligned(planned: Launch) -> Compiled:
    """Compiled for 32 labels: four neighbouring labels then share one access, and one mask."""
    return compile_ptx(dataclasses.replace(planned, arguments={**planned.arguments, "labels": 32}))


@pytest.mark.parametrize("name", ["gradient", "average", "division"])
def test_a_mask_of_labels_that_is_merged_is_seen(name: str) -> None:
    faults = check(SMALL[name](), as_if_labels_were_aligned)["faults"]
    assert "error" in faults
    assert "misaligned" in faults
    assert "out of bounds" in faults


def test_a_mask_of_windows_that_is_merged_is_seen(tmp_path: Path) -> None:
    """What the analysis of axes once did by itself in the walk's step, here claimed by the source."""
    original = "    total = tl.where(in_window & key_valid[None, :], total, 0.0)\n"
    merged = "    in_window = tl.max_constancy(in_window, [1, 2])\n" + original
    with kernels_with("local_affinity", "local_affinity", original, merged, tmp_path) as run:
        plan = sys.modules[run.__module__].plan
        faults = check(local_case(torch.float32, (3, 9), (3, 3), plan))["faults"]
    assert faults.startswith("error")


def test_rows_that_a_stencil_takes_for_aligned_are_seen() -> None:
    """Seeds of 5 labels read as if each row began at 16 bytes."""
    case = SMALL["stencil"]()
    first, *others = case.launches
    first = dataclasses.replace(
        first, constants=first.constants | {"P_ALIGN": 4}, arguments=first.arguments | {"p_units": 2}
    )
    assert "error" in check(dataclasses.replace(case, launches=[first, *others]))["faults"]


def test_what_is_not_written_is_seen() -> None:
    case = SMALL["average"]()
    fewer = [dataclasses.replace(launch, programs=launch.programs - 1) for launch in case.launches]
    assert check(dataclasses.replace(case, launches=fewer))["faults"] == "error nan"


def test_every_relative_of_the_step_is_interpreted() -> None:
    kernels = {launch.kernel.__name__ for case in kernels_ptx.CASES.values() for launch in case().launches}
    assert kernels == {
        "attention_gradient_kernel",
        "local_affinity_kernel",
        "normalize_rows_kernel",
        "window_values_gradient_kernel",
        "u_gradient_kernel",
        "average_cells_kernel",
        "divide_rows_kernel",
        "stencil_step_kernel",
        "fold_margin_kernel",
        "stencil_values_gradient_kernel",
        "graph_step_kernel",
        "graph_values_gradient_kernel",
    }
