"""Refiners at the size of an image in the registry: from colours and masks to masks."""

from __future__ import annotations

from benchmarks.operations import sizes
from benchmarks.operations.attention import MEBIBYTE
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Operation, Peer, Size, Work
from benchmarks.peers import torch_refiners
from benchmarks.peers.published import PAMR_DILATIONS
from benchmarks.peers.torch_refiners import ALPHA, TAU
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels._operators.walk.conjugate_gradients import iterate
from nerve_kernels._operators.walk.cpp_affinity_operator import stencil_solve_cpp
from nerve_kernels.grids import stencil_offsets

PAMR_MODULE, PAMR_SHIFTS = "the module's operations in torch", "shifts and adds in torch"
SCIPY = "scipy CSR, its CG a label"


def _pamr(problem: Problem, backend: str | None) -> Call:
    image, seeds, steps = torch_refiners.smooth_image(problem), problem.seeds, problem.size.steps

    def call() -> Tensor:
        affinity = nk.pixel_affinity(image, dilations=PAMR_DILATIONS, backend=backend)
        return nk.random_walk(seeds, affinity, alpha=1.0, steps=steps, normalize=False, backend=backend)

    return call


def _pamr_reference(problem: Problem) -> Tensor:
    grid, offsets = problem.size.grid, stencil_offsets((3, 3), PAMR_DILATIONS, False)
    image = torch_refiners.smooth_image(problem)
    values = reference.pixel_affinity(image, offsets=offsets, kind="pamr", centres=len(PAMR_DILATIONS))
    dense = reference.stencil_to_dense(values, grid=grid, offsets=offsets, clamp=True)
    return reference.random_walk(problem.seeds, dense, alpha=1.0, steps=problem.size.steps, normalize=False)


def _work(size: Size, columns: int) -> Work:
    pixels = size.batch * size.tokens
    # each weight is made from three colours and an exponential, and used for every label in every step
    operations = pixels * columns * (2 * size.labels * size.steps + 12)
    return Work(4 * pixels * (3 + 2 * size.labels), operations, pixels * columns)


def _memory(size: Size, columns: int) -> int:
    pixels = size.batch * size.tokens
    # eager holds weights, exponents and copies of P
    return 32 * MEBIBYTE + 4 * pixels * (6 * columns + 8 * size.labels) + 64 * size.tokens * columns


def _lposs_plus(problem: Problem, backend: str | None) -> Call:
    image, right, size = torch_refiners.smooth_image(problem), problem.seeds, problem.size

    def call() -> Tensor:
        affinity = nk.pixel_affinity(
            image, window=size.window, kind="lab", tau=TAU, normalize="symmetric", backend=backend
        )
        if backend == "eager":
            return iterate(lambda p: affinity @ p, right, ALPHA, size.steps, 0.0)[0]
        arguments = affinity.operator_arguments()
        offsets = [step for offset in arguments.offsets() for step in offset]
        return stencil_solve_cpp(right, affinity.values, list(size.grid), offsets, False, ALPHA, size.steps, 0.0)

    return call


def _lposs_plus_reference(problem: Problem) -> Tensor:
    size = problem.size
    offsets = stencil_offsets((size.window, size.window), (1,), False)
    image = torch_refiners.smooth_image(problem)
    values = reference.pixel_affinity(image, offsets=offsets, kind="lab", tau=TAU, normalize="symmetric")
    dense = reference.stencil_to_dense(values, grid=size.grid, offsets=offsets)
    return iterate(lambda p: dense @ p, problem.seeds.double(), ALPHA, size.steps, 0.0)[0]


PAMR = Operation(
    name="PAMR, colours and masks to masks",
    ours=_pamr,
    reference=_pamr_reference,
    work=lambda size: _work(size, 8 * len(PAMR_DILATIONS)),
    extra_bytes=lambda size: _memory(size, 8 * len(PAMR_DILATIONS)),
    baseline=PAMR_SHIFTS,
    peers=(
        Peer(PAMR_SHIFTS, torch_refiners.pamr_shifts, devices=("cpu",)),
        Peer(
            PAMR_MODULE,
            torch_refiners.pamr_module,
            published=True,
            devices=("cpu",),
            extra_bytes=torch_refiners.pamr_module_bytes,
            full_only=True,
        ),
    ),
    sizes=(sizes.IMAGE_21, sizes.IMAGE_171),
    quick=(sizes.IMAGE_21,),
    backends=("cpp", "eager"),
)

LPOSS_PLUS = Operation(
    name="LPOSS+, colours and scores to scores",
    ours=_lposs_plus,
    reference=_lposs_plus_reference,
    work=lambda size: _work(size, size.window**2 - 1),
    extra_bytes=lambda size: _memory(size, size.window**2 - 1),
    baseline=SCIPY,
    peers=(
        Peer(
            SCIPY,
            torch_refiners.lposs_plus_scipy,
            published=True,
            requires=("scipy",),
            devices=("cpu",),
            extra_bytes=lambda size: 60 * size.batch * size.tokens * size.window**2,
        ),
    ),
    sizes=(sizes.IMAGE_WINDOW_13,),
    quick=(sizes.QUICK_WINDOW_13,),
    backends=("cpp", "eager"),
    tolerance=1e-3,  # after so few iterations every rounding of the first is in the last
)

ALL = (PAMR, LPOSS_PLUS)
