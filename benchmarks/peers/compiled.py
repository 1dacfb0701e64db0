"""torch.compile of the naive code. One compilation for each function and shape, shared by all copies of the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call
from benchmarks.peers.torch_attention import naive_affinities, naive_entropy, naive_fused
from benchmarks.peers.torch_walk import dense_loop
from torch import Tensor


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function as Inductor makes it."""
    return torch.compile(function, dynamic=False)


def entropy(problem: Problem) -> Call:
    """Softmax, then entropy."""
    function, q, k = compiled(naive_entropy), problem.q, problem.k
    return lambda: function(q, k)


def fused(problem: Problem) -> Call:
    """Softmax, then the weighted sum."""
    function, q, k, w = compiled(naive_fused), problem.q, problem.k, problem.w
    return lambda: function(q, k, w)


def affinities(problem: Problem) -> Call:
    """Maps to window and cells."""
    function, q, k, size = compiled(naive_affinities), problem.q, problem.k, problem.size
    return lambda: function(q, k, size)


def dense_walk(problem: Problem) -> Call:
    """The loop over a dense matrix."""
    function, seeds, steps = compiled(dense_loop), problem.seeds, problem.size.steps
    affinity = problem.dense.to(problem.dtype)
    return lambda: function(seeds, affinity, steps)
