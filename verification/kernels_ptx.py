"""Relatives of the walk's step, compiled for sm_80 and interpreted on the CPU: windows, gradients, averages, gathers.

Triton's analysis of axes once took a mask for equal on neighbours where it was not, and merged it: the compiled step
was wrong where its source, and Triton's own interpreter, were right. These kernels have masks of the same making. Every
program of a small launch is run (see ``verification.ptx``); a race, an access out of bounds, a result that was not
written or is not the float64 definition's, fails.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.tables import write_rows
from tests.triton.sparse_walk_problems import SparseProblem
from torch import Tensor
from verification.checks import ROOT
from verification.walk_ptx import Compiled, compile_ptx, interpret, relative_error

from nerve_kernels import reference
from nerve_kernels._operators.attention import score_gradients
from nerve_kernels._operators.walk.affinity_operator import AffinityOperator
from nerve_kernels._triton.attention import attention_gradient, local_affinity
from nerve_kernels._triton.launch import Launch, recording
from nerve_kernels._triton.walk import random_walk, walk_gradients, walk_pooling
from nerve_kernels._triton.walk.sparse_gradients import sparse_gradient
from nerve_kernels._triton.walk.sparse_step import sparse_local
from nerve_kernels._triton.walk.u_gradient import plan_u
from nerve_kernels.grids import stencil_neighbours, window_neighbours

RESULTS = ROOT / "build" / "verify" / "kernels_ptx.csv"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@dataclass(frozen=True)
class PtxCase:
    """Launches one after the other, what they write, and what it should be; ``tolerance`` of ‖x − ref‖ / ‖ref‖."""

    launches: list[Launch]
    result: Tensor
    expected: Tensor
    tolerance: float


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def local_case(
    dtype: torch.dtype, grid: tuple[int, int], window: tuple[int, int], plan: Callable[..., list[Launch]] | None = None
) -> PtxCase:
    """Window values of two heads."""
    tokens, heads, size = math.prod(grid), 2, 16
    q, k = (_random(1, tokens, heads, size, seed=seed).to(dtype).transpose(1, 2) for seed in (0, 1))
    w = torch.tensor([[0.3, 0.7]])
    lse = (q.double() @ k.double().transpose(-1, -2) * size**-0.5).logsumexp(-1).float()
    values = torch.full((1, tokens, math.prod(window)), math.nan)
    fused = reference.fuse_attention(q, k, w)
    neighbour, inside = window_neighbours(grid, window)
    kept = fused.gather(2, neighbour.expand(1, -1, -1)) * inside
    planned = (plan or local_affinity.plan)(q, k, w, lse, list(grid), list(window), size**-0.5, True, values)
    # what is in the window and off the grid is 0 in both
    return PtxCase(planned, values, kept / kept.sum(-1, keepdim=True), TOLERANCE[dtype])


def score_gradient_case(dtype: torch.dtype, of_keys: bool, sharpness: float = 1.0) -> PtxCase:
    """dq or dk of two heads from the gradients of entropy, window and uneven cells."""
    grid, window, cells, heads, size = (5, 9), (3, 5), (2, 4), 2, 40
    tokens = math.prod(grid)
    q, k = (_random(1, tokens, heads, size, seed=seed).to(dtype).transpose(1, 2) for seed in (0, 1))
    lse = (q.double() @ k.double().transpose(-1, -2) * size**-0.5).logsumexp(-1).float()
    a, b, c, cell_lse = (_random(*lse.shape, seed=seed) for seed in (2, 3, 4, 5))
    if sharpness == 1:
        c = cell_lse = None
    else:
        cell_lse = cell_lse + 8
    local, pooled = (_random(*lse.shape, math.prod(sides), seed=6) for sides in (window, cells))
    rows = {"lse": lse, "a": a, "b": b, "cell_lse": cell_lse, "c": c, "local": local, "pooled": pooled}
    options = list(grid), list(window), list(cells), size**-0.5, sharpness
    wide = [None if item is None else item.double() for item in (q, k, *rows.values())]
    expected = score_gradients.eager(*wide, *options)[of_keys]
    results = [torch.full(shape, math.nan) for shape in (q.shape, k.shape, lse.shape)]
    planned = attention_gradient.plan(q, k, rows, *options, tuple(results))[of_keys]
    return PtxCase([planned], results[of_keys], expected, TOLERANCE[dtype])


def gradient_case(
    grid: tuple[int, int], window: tuple[int, int], labels: int, plan: Callable[..., Launch] | None = None
) -> PtxCase:
    """The gradient of window values added to what was there, for a batch of two that shared them."""
    tokens = math.prod(grid)
    adjoint, p = _random(2, tokens, labels, seed=2), _random(2, tokens, labels, seed=3)
    before = _random(1, tokens, math.prod(window), seed=4)
    neighbour, inside = window_neighbours(grid, window)
    product = (adjoint.double() @ p.double().transpose(-1, -2)).sum(0, keepdim=True)
    expected = before.double() + 0.5 * product.gather(2, neighbour.expand(1, -1, -1)) * inside
    found = before.clone()
    planned = (plan or walk_gradients.plan_window_values)(adjoint, p, list(grid), list(window), 0.5, found)
    return PtxCase([planned], found, expected, TOLERANCE[torch.float32])


def u_gradient_case(tokens: int, ranks: int, labels: int) -> PtxCase:
    """The gradient of U over three steps added to what was there, for a batch of two that shared it."""
    # what lies between steps, in the walk up to a multiple of 16 bytes, is not read
    adjoints, pools = (
        torch.cat((_random(3, 2 * rows * labels, seed=seed), torch.full((3, 4), math.nan)), 1)[:, :-4].unflatten(
            1, (2, rows, labels)
        )
        for rows, seed in ((tokens, 2), (ranks, 3))
    )
    before = _random(1, tokens, ranks, seed=4)
    expected = before.double() + 0.5 * torch.einsum("sbic,sbmc->im", adjoints.double(), pools.double())
    found = before.clone()
    return PtxCase([plan_u(adjoints, pools, 0.5, found)], found, expected, TOLERANCE[torch.float32])


def average_case(
    grid: tuple[int, int], cells: tuple[int, int], labels: int, plan: Callable[..., Launch] | None = None
) -> PtxCase:
    """Means over cells of a batch of two."""
    p = _random(2, math.prod(grid), labels, seed=5)
    pooled = torch.full((2, math.prod(cells), labels), math.nan)
    expected = reference.cell_average(grid, cells).T @ p.double()
    planned = (plan or walk_pooling.plan_average)(p, list(grid), list(cells), pooled)
    return PtxCase([planned], pooled, expected, 1e-6)


def division_case(rows: int, labels: int) -> PtxCase:
    """Rows divided by their sums, one of which is 0."""
    p = _random(1, rows, labels, seed=6).abs()
    p[0, 1] = 0
    total = p.double().sum(-1, keepdim=True)
    out = torch.full_like(p, math.nan)
    return PtxCase([walk_pooling.plan_division(p, out)], out, p.double() / torch.where(total == 0, 1, total), 1e-6)


def sparse_case(kind: str, part: str, **options: Any) -> PtxCase:
    """Of a stencil or a graph, two steps of the walk, the product with Sᵀ, or the gradient of the values."""
    problem = SparseProblem(kind=kind, **options)
    seeds, affinity, *_ = arguments = problem.arguments()
    if part == "walk":
        with recording() as found:
            out = random_walk.run(*arguments)
        out.fill_(math.nan)
        return PtxCase(found, out, problem.expected(), 1e-6)
    local, matrix, p = sparse_local(affinity), problem.affinity(), seeds.float()
    assert local is not None
    if part == "transpose":
        out = torch.full(p.shape, math.nan)
        planned = local.transpose().plan(p, None, out, 0.0, 0.5).parts
        return PtxCase([launch for launch, _ in planned], out, 0.5 * matrix.transpose(1, 2) @ p.double(), 1e-6)
    adjoint = _random(*p.shape, seed=10)
    gradient = sparse_gradient(local)
    wide = AffinityOperator(affinity.map(Tensor.double), torch.float64)
    expected = wide.gradient(0.5 * adjoint.double(), p.double())[0]
    assert expected is not None
    if not affinity.clamp and affinity.row_pointers is None:
        expected = torch.where(stencil_neighbours(problem.grid, affinity.offsets(), False)[1], expected, 0)
    return PtxCase([gradient.plan(adjoint, p, 0.5)], gradient.values, expected, 1e-6)


# sides that are no multiples of tiles; windows that are square and not; labels with and without a remainder
CASES: dict[str, Callable[[], PtxCase]] = {
    "local_affinity, fp32": lambda: local_case(torch.float32, (6, 11), (3, 5)),
    "local_affinity, fp16": lambda: local_case(torch.float16, (6, 11), (3, 5)),
    "local_affinity, bf16, window 7": lambda: local_case(torch.bfloat16, (8, 16), (7, 7)),
    "local_affinity, fp32, two launches": lambda: local_case(torch.float32, (9, 13), (9, 13)),
    "dq, fp32": lambda: score_gradient_case(torch.float32, False),
    "dk, fp16": lambda: score_gradient_case(torch.float16, True),
    "dk, bf16, sharpened": lambda: score_gradient_case(torch.bfloat16, True, 2.0),
    "window values' gradient, 21 labels": lambda: gradient_case((6, 11), (3, 5), 21),
    "window values' gradient, 32 labels, window 7": lambda: gradient_case((8, 16), (7, 7), 32),
    "U's gradient, 21 labels": lambda: u_gradient_case(70, 15, 21),
    "U's gradient, 36 labels": lambda: u_gradient_case(64, 72, 36),
    "averages of even cells, 21 labels": lambda: average_case((8, 16), (2, 4), 21),
    "averages of uneven cells, 32 labels": lambda: average_case((7, 13), (3, 5), 32),
    "division of rows": lambda: division_case(37, 21),
    "walk on a stencil, fp32": lambda: sparse_case("stencil", "walk", grid=(9, 18)),
    "walk on a stencil with its border repeated, fp16": lambda: sparse_case(
        "clamped", "walk", grid=(9, 18), dtype=torch.float16, planar=False, labels=21
    ),
    "walk on a graph, bf16": lambda: sparse_case("graph", "walk", dtype=torch.bfloat16, labels=21),
    "transpose of a stencil": lambda: sparse_case("stencil", "transpose", grid=(9, 18)),
    "transpose of a stencil with its border repeated": lambda: sparse_case("clamped", "transpose"),
    "transpose of a graph": lambda: sparse_case("graph", "transpose"),
    "stencil values' gradient": lambda: sparse_case("stencil", "gradient"),
    "graph values' gradient": lambda: sparse_case("graph", "gradient", labels=33),
}


def check(case: PtxCase, compiler: Callable[[Launch], Compiled] = compile_ptx) -> dict[str, Any]:
    """A row: error, warp instructions, and races, accesses out of bounds and errors in words."""
    kinds: list[str] = []
    instructions = 0
    for planned in case.launches:
        report, _ = interpret(planned, compiler(planned))
        kinds += [fault.kind for fault in report.faults]
        instructions += sum(report.warp_instructions.values())
    error = relative_error(case.result, case.expected)
    faults = [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    if not error <= case.tolerance:  # also where something was not written
        faults.append(f"error {error:.2g}")
    return {"error": f"{error:.2g}", "warp_instructions": instructions, "faults": "; ".join(faults)}


def main() -> int:
    """Write the table; 1 where any case has a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for name in options.cases:
        rows.append({"case": name, **check(CASES[name]())})
        row = rows[-1]
        print(
            f"{name:46} error {row['error']:8} {row['warp_instructions']:9} warp instructions  {row['faults']}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(options.out, rows)
    failed = [row for row in rows if row["faults"]]
    print(f"{len(rows)} cases interpreted, {len(failed)} with faults; {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
