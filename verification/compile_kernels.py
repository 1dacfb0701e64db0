"""Every Triton kernel that the GPU tests and the benchmarks will start, compiled beforehand in parallel and counted.

Launches are planned on tensors without storage, and each kernel among them is compiled once, for the GPU at hand or, on
a CPU, for sm_90. A line a kernel goes to the CSV as it is done. What is compiled here is in Triton's cache on disk when
the next stage asks for it; a kernel that cannot be compiled is named and fails.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu_bench import CASES
from benchmarks.operations import gradients, sizes
from benchmarks.operations.catalog import OPERATIONS
from benchmarks.operations.problems import ALPHA, BETA, Problem
from benchmarks.operations.registry import Operation, Size
from tests.gpu import test_real_sizes as real
from tests.gpu import test_triton_walk_on_gpu as walks
from verification import sparse_launches

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators import dispatch, library
from nerve_kernels._triton.compilation import Target, compile_in_processes, current_target, distinct
from nerve_kernels._triton.launch import Launch, recording

WITHOUT_GPU: Target = ("cuda", 90, 32)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COLUMNS = ("kernel", "seconds", "error", "constants")


@contextmanager
def operators_on_triton() -> Iterator[None]:
    """Operators are what their Triton implementations make of tensors without storage, where torch would run fakes."""
    usual = library.Operator.__call__

    def call(self: library.Operator, *arguments: Any) -> Any:
        bound = self.schema.bind(arguments[: len(self.schema.names)])
        return dispatch._operations[self.schema.name]["triton"].run(*bound)

    library.Operator.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        library.Operator.__call__ = usual  # type: ignore[method-assign]


def of_registry(operation: Operation, size: Size, dtype: torch.dtype) -> None:
    """Plan what one operation of the registry starts."""
    problem = Problem(size, dtype=dtype, device="meta")
    grid, window, cells = list(size.grid), [size.window] * 2, [size.cells] * 2
    if operation.name == "S_local @ P":  # calls the operator by its name in torch
        implementation("window_product")(problem.local.values, problem.seeds, grid, window)
    elif operation.name == "random_walk, forward and backward":
        affinity = AffinityArguments(
            problem.local.values, problem.global_affinity.u, grid=grid, window=window, cells=cells, beta=BETA
        )
        arguments = (problem.seeds, affinity, ALPHA, size.steps, False)
        implementation("random_walk")(*arguments)
        implementation("random_walk_backward")(problem.seeds, *arguments)
    elif operation in gradients.ALL:
        of_gradient(operation, problem)
    elif "triton" in operation.backends and not operation.differentiates and operation.name != "random_walk_limit":
        operation.ours(problem, "triton")()  # the limit is eager on a GPU


def of_gradient(operation: Operation, problem: Problem) -> None:
    """Plan what the backward pass of one operation on q and k starts."""
    q, k, w, lse, size = problem.q, problem.k, problem.w, problem.lse, problem.size
    grid, window, cells = list(size.grid), [size.window] * 2, [size.cells] * 2
    local, pooled = (lse.new_empty((*lse.shape, sides[0] * sides[1])) for sides in (window, cells))
    if operation is gradients.ENTROPY:
        implementation("attention_entropy_backward")(lse, lse, q, k, 1.0, lse, lse)
    elif operation is gradients.LOCAL:
        implementation("local_affinity_backward")(local[:, 0], q, k, w, lse, grid, window, 1.0, True)
    elif operation is gradients.GLOBAL:
        implementation("global_affinity_backward")(pooled[:, 0], q, k, w, lse, grid, cells, 1.0)
    else:
        results = lse, lse, local, pooled, lse
        options = grid, window, cells, 1.0, 1.0, False
        implementation("attention_statistics_backward")(*results, q, k, *options, *results)
        for kept in (local, pooled):
            implementation("fuse_attention_maps_backward")(kept[:, 0], kept, w, True)


def implementation(operation: str) -> Any:
    """Of an operator, by Triton."""
    return dispatch._operations[operation]["triton"].run


def of_real_sizes() -> None:
    """Plan what the tests at the sizes of users start."""
    warming = sys.modules["nerve_kernels.warmup"]  # beside the function of this name
    for dtype in real.DTYPES:
        for layer in real.LAYERS.values():
            q = torch.empty(1, layer.side**2, layer.heads, layer.head_size, dtype=dtype, device="meta").transpose(1, 2)
            square = [(side, side) for side in (layer.side, layer.window, layer.cells)]
            affinity = warming._described(*square, BETA, torch.float32)
            warming.launches(q, q, None, *square, layer.head_size**-0.5, affinity, False)
        for name in ("stencil", "graph"):
            sparse = sparse_launches.SIZES[name]
            seeds = torch.empty(1, math.prod(sparse.grid), sparse.labels, device="meta")
            implementation("random_walk")(seeds, sparse.affinity(dtype), ALPHA, sparse_launches.STEPS, False)
        for walk in real.WALKS.values():
            seeds = torch.empty(1, walk.side**2, walk.labels, device="meta")
            square = [(side, side) for side in (walk.side, walk.window, walk.cells)]
            warming.launches(None, None, seeds, *square, 1.0, warming._described(*square, BETA, dtype), False)


def of_walk_tests() -> None:
    """Plan what the tests of the walk and of its gradient start."""
    for kind in walks.KINDS:
        for size in walks.SIZES.values():
            problem = walks.problem_of(kind, batch=2, steps=5, **size)
            arguments = walks.on_device(problem.arguments(), "meta")
            for dtype in walks.TOLERANCE:
                stored = [
                    part.map(lambda tensor, dtype=dtype: tensor.to(dtype))
                    if isinstance(part, AffinityArguments)
                    else part
                    for part in arguments
                ]
                walks.operation("random_walk")(*stored)
                if dtype == torch.float32:
                    walks.operation("random_walk_backward")(arguments[0], *arguments)


def planned(small: bool) -> list[Launch]:
    """All launches of the tests and the benchmarks; ``small``: of the operations of the registry at a small size."""
    with recording() as found, operators_on_triton():
        for operation in OPERATIONS:
            for dtype in DTYPES[:1] if small else DTYPES:
                of_registry(operation, sizes.SMALL, dtype)
        if not small:
            for operation, size, dtype in CASES:
                of_registry(operation, size, dtype)
            of_real_sizes()
            of_walk_tests()
    return found


def main() -> int:
    """1 where a kernel does not compile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a few of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    options = parser.parse_args()
    target = current_target() if options.device == "cuda" else WITHOUT_GPU
    start = time.monotonic()
    launches = planned(options.small)
    wanted = distinct(launches)
    names = Counter(launch.kernel.__name__ for launch in wanted)
    print(f"{len(launches)} launches planned in {time.monotonic() - start:.1f} s, {len(wanted)} kernels", flush=True)
    for name, count in names.most_common():
        print(f"{count:5} {name}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed = compiled = 0
    with options.out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for result in compile_in_processes(wanted, target, options.jobs):
            launch = wanted[result["index"]]
            writer.writerow({**result, "kernel": launch.kernel.__name__, "constants": launch.constants})
            stream.flush()
            compiled, failed = compiled + 1, failed + (result["error"] is not None)
            if result["error"] is not None:
                print(f"FAILED {launch.kernel.__name__} {launch.constants}: {result['error']}", flush=True)
    seconds = time.monotonic() - start
    print(f"{compiled} kernels compiled for {target[0]} {target[1]} in {seconds:.0f} s, {failed} failed; {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
