"""The persistent CUDA walk on a GPU: against the CPU, against itself, in a graph, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tests.ops.problems import relative_error, walk_problem
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native
from nerve_kernels._cuda import random_walk as persistent_walk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
    pytest.mark.skipif(
        not _native.cuda_extension_loaded(), reason=f"the CUDA extension is not loaded: {_native.cuda_load_error()}"
    ),
]

PROBLEMS = {
    "target size": {"grid": (64, 64), "labels": 21, "window": (7, 7), "cells": (16, 16)},
    "uneven cells": {"grid": (37, 41), "labels": 21, "window": (5, 9), "cells": (7, 16)},
    "more cells than tiles": {"grid": (24, 24), "labels": 3, "cells": (24, 24)},
    "batch with affinities of its own": {"grid": (16, 20), "labels": 9, "batch": 3, "cells": (8, 10)},
    "shared affinity": {"grid": (16, 20), "labels": 9, "batch": 3, "affinity_batch": 1, "cells": (8, 10)},
    "many ranges of labels": {"grid": (12, 12), "labels": 171, "window": (5, 5), "cells": (4, 4)},
    "more labels than are resident": {"grid": (64, 64), "labels": 600, "window": (7, 7), "cells": (16, 16)},
    "more images than are resident": {"grid": (64, 64), "labels": 21, "batch": 7, "window": (7, 7), "cells": (8, 8)},
    "one row": {"grid": (1, 13), "labels": 2, "window": (1, 5), "cells": (1, 5)},
}


def walk(problem, beta: float, *, device: str, backend: str | None, **options) -> Tensor:
    affinity = problem.mixed(beta).to(device)
    return nk.random_walk(problem.seeds.to(device), affinity, alpha=0.9, backend=backend, **options)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_agrees_with_float64_on_the_cpu(name: str, beta: float) -> None:
    problem = walk_problem(0, **PROBLEMS[name], dtype=torch.float64)
    single = walk_problem(0, **PROBLEMS[name], dtype=torch.float32)
    for options in ({"steps": 20}, {"steps": 1, "normalize": False}, {"steps": 0}):
        expected = walk(problem, beta, device="cpu", backend="eager", **options)
        result = walk(single, beta, device="cuda", backend="cuda", **options)
        assert relative_error(result.cpu(), expected) < 1e-6


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seeds", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_low_precision_storage(seeds: torch.dtype, stored: torch.dtype) -> None:
    problem = walk_problem(1, (33, 30), labels=21, window=(7, 7), cells=(8, 8), dtype=torch.float32)
    affinity, start = problem.mixed(0.5).to(stored), problem.seeds.to(seeds)
    expected = nk.random_walk(start.double(), affinity.to(torch.float64), alpha=0.9, steps=20, backend="eager")
    result = nk.random_walk(start.cuda(), affinity.to("cuda"), alpha=0.9, steps=20, backend="cuda")
    assert result.dtype == seeds
    rounding = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[seeds]
    assert relative_error(result.cpu(), expected) < rounding


def test_bitwise_repeatable_and_the_same_on_any_stream() -> None:
    problem = walk_problem(2, **PROBLEMS["target size"], dtype=torch.float32)
    first = walk(problem, 0.5, device="cuda", backend="cuda", steps=50)
    for _ in range(10):
        assert torch.equal(walk(problem, 0.5, device="cuda", backend="cuda", steps=50), first)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = walk(problem, 0.5, device="cuda", backend="cuda", steps=50)
    stream.synchronize()
    assert torch.equal(other, first)


def test_captured_in_a_graph_and_replayed_on_new_seeds() -> None:
    problem = walk_problem(3, **PROBLEMS["target size"], dtype=torch.float32)
    affinity = problem.mixed(0.5).to("cuda")
    seeds = problem.seeds.cuda()

    def step() -> Tensor:
        return nk.random_walk(seeds, affinity, alpha=0.9, steps=20, backend="cuda")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    for other in (problem.seeds, problem.seeds.flip(1)):
        seeds.copy_(other)
        graph.replay()
        assert torch.equal(result, step())


def test_nothing_waits_for_the_gpu() -> None:
    problem = walk_problem(4, **PROBLEMS["uneven cells"], dtype=torch.float32)
    affinity, seeds = problem.mixed(0.5).to("cuda"), problem.seeds.cuda()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nk.random_walk(seeds, affinity, alpha=0.9, steps=5, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_any_strides_of_the_seeds() -> None:
    problem = walk_problem(5, **PROBLEMS["shared affinity"], dtype=torch.float32)
    affinity, seeds = problem.mixed(0.5).to("cuda"), problem.seeds.cuda()
    strided = seeds.transpose(1, 2).contiguous().transpose(1, 2)
    results = [nk.random_walk(start, affinity, alpha=0.9, steps=5, backend="cuda") for start in (seeds, strided)]
    assert torch.equal(*results)


def test_the_rule_chooses_it_for_the_target_size_and_leaves_many_labels_to_who_names_it() -> None:
    for labels, expected in ((21, True), (600, False)):
        problem = walk_problem(6, (64, 64), labels=labels, window=(7, 7), cells=(16, 16), dtype=torch.float32)
        arguments = (problem.seeds.cuda(), problem.mixed(0.5).to("cuda").operator_arguments())
        assert persistent_walk.why_unsupported(*arguments) is None
        assert persistent_walk.is_preferred(*arguments) == expected


def test_what_it_refuses_is_said_and_runs_without_naming_it() -> None:
    huge = walk_problem(7, (512, 512), labels=3, window=(3, 3), cells=(4, 4), dtype=torch.float32)
    factors = walk_problem(8, (8, 8), cells=None, dtype=torch.float32)
    wide = walk_problem(9, (8, 8), dtype=torch.float64)
    for problem, reason in [
        (huge, "the blocks that walk one image must be on the GPU at once: 512 × 512 tokens"),
        (factors, "got explicit factors u and v"),
        (wide, "got float64 inputs"),
    ]:
        with pytest.raises(nk.BackendUnavailableError, match=reason):
            walk(problem, 0.5, device="cuda", backend="cuda", steps=3)
        expected = walk(problem, 0.5, device="cpu", backend="eager", steps=3)
        result = walk(problem, 0.5, device="cuda", backend=None, steps=3)
        assert relative_error(result.cpu(), expected) < 1e-5
    with pytest.raises(nk.BackendUnavailableError, match="got a dense affinity"):
        nk.random_walk(wide.seeds.float().cuda(), wide.dense(0.5).float().cuda(), alpha=0.9, steps=3, backend="cuda")


def test_the_gradient_of_a_walk_that_ran_on_it() -> None:
    problem = walk_problem(10, (12, 12), labels=5, cells=(4, 4), dtype=torch.float32)
    gradients = []
    for device, backend in (("cpu", "eager"), ("cuda", "cuda")):
        seeds = problem.seeds.to(device, copy=True).requires_grad_()
        affinity = problem.mixed(0.5).to(device)
        nk.random_walk(seeds, affinity, alpha=0.9, steps=5, backend=backend).square().sum().backward()
        gradients.append(seeds.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
