"""The walk's Triton kernels on a GPU: against the definition, in a CUDA graph, the same bits every time."""

from __future__ import annotations

import importlib

import pytest
import torch
from tests.ops.problems import relative_error
from tests.triton.sparse_walk_problems import SPARSE_KINDS, SparseProblem
from tests.triton.walk_problems import KINDS as WINDOW_KINDS
from tests.triton.walk_problems import Problem

from nerve_kernels._arguments import AffinityArguments, match_gradient

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
]

KINDS = (*WINDOW_KINDS, *SPARSE_KINDS)
SIZES = {
    "even": {"grid": (64, 64), "window": (7, 7), "cells": (16, 16), "labels": 21},
    "uneven": {"grid": (37, 29), "window": (5, 9), "cells": (7, 5), "labels": 33},
    "large cells": {"grid": (64, 48), "window": (3, 3), "cells": (4, 3), "labels": 150},
}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 1e-4}


def operation(name: str):
    return importlib.import_module(f"nerve_kernels._triton.walk.{name}").run


def problem_of(kind, **options):
    return (SparseProblem if kind in SPARSE_KINDS else Problem)(kind=kind, **options)


def converted(arguments, convert):
    kinds = {torch.Tensor: convert, AffinityArguments: lambda affinity: affinity.map(convert)}
    return [kinds.get(type(item), lambda other: other)(item) for item in arguments]


def on_device(arguments, device):
    """With the indices of a graph, which ``converted`` leaves as they are."""

    def moved(item):
        if not isinstance(item, AffinityArguments) or item.row_pointers is None:
            return item
        return item._replace(row_pointers=item.row_pointers.to(device), columns=item.columns.to(device))

    return [moved(item) for item in converted(arguments, lambda tensor: tensor.to(device))]


def on_gpu(arguments):
    return on_device(arguments, "cuda")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_walk(kind, size, dtype):
    """Against the stored weights: what is lost beyond their own rounding."""
    problem = problem_of(kind, dtype=dtype, batch=2, steps=5, **SIZES[size])
    result = operation("random_walk")(*on_gpu(problem.arguments()))
    assert relative_error(result.cpu(), problem.expected()) < TOLERANCE[dtype]


@pytest.mark.parametrize("affinity_batch", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, size, affinity_batch):
    problem = problem_of(kind, batch=2, affinity_batch=affinity_batch, steps=5, **SIZES[size])
    arguments = problem.arguments()
    grad = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1))
    found = operation("random_walk_backward")(*on_gpu([grad, *arguments]))
    eager = importlib.import_module("nerve_kernels._operators.walk.random_walk_backward").eager
    wanted = eager(*converted([grad, *arguments], torch.Tensor.double))
    names, parts = ("seeds", "values", "u", "v", "dense"), (arguments[0], *arguments[1].parts)
    for name, result, expected, part in zip(names, found, wanted, parts, strict=True):
        if part is not None:
            assert relative_error(result.cpu(), match_gradient(expected, part.double())) < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_cuda_graph_replays_the_walk(kind):
    arguments = on_gpu(problem_of(kind, steps=5, **SIZES["even"]).arguments())
    run = operation("random_walk")
    expected = run(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*arguments)
    other = torch.rand_like(arguments[0])
    arguments[0].copy_(other)
    graph.replay()
    again = captured.clone()
    assert torch.equal(again, run(*arguments))
    assert not torch.equal(again, expected)


@pytest.mark.parametrize("name", ["random_walk", "random_walk_backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_every_time(kind, name):
    arguments = on_gpu(problem_of(kind, batch=2, steps=5, **SIZES["uneven"]).arguments())
    if name == "random_walk_backward":
        arguments = [torch.ones_like(arguments[0]), *arguments]
    first = operation(name)(*arguments)
    for _ in range(10):
        again = operation(name)(*arguments)
        pairs = [(first, again)] if name == "random_walk" else zip(first, again, strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("kind", ["mixed", "mixed clamped", "mixed graph"])
def test_nothing_waits_for_the_gpu(kind):
    arguments = on_gpu(problem_of(kind, steps=3, **SIZES["even"]).arguments())
    grad = torch.ones_like(arguments[0])
    operation("random_walk")(*arguments)  # compiled before
    operation("random_walk_backward")(grad, *arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        operation("random_walk")(*arguments)
        operation("random_walk_backward")(grad, *arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
