"""Stages 1 to 3 captured as one CUDA graph, and replayed on new inputs."""

from __future__ import annotations

import pytest
import torch

import nerve_kernels as nk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
]

GRID = (16, 20)
TOKENS = GRID[0] * GRID[1]


def inputs(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 4, TOKENS, 40, generator=generator) for _ in range(2))
    return [q, k, torch.rand(1, TOKENS, 21, generator=generator).softmax(-1)]


def refine(q: torch.Tensor, k: torch.Tensor, seeds: torch.Tensor, backend: str | None = None) -> torch.Tensor:
    entropy, lse = nk.attention_entropy(q, k, return_lse=True)
    w = nk.head_weights(entropy, num_keys=TOKENS)
    local = nk.local_affinity(q, k, w, grid=GRID, window=5, lse=lse)
    coarse = nk.global_affinity(q, k, w, grid=GRID, cells=(8, 10), lse=lse)
    return nk.random_walk(seeds, nk.mix(coarse, local), alpha=0.9, steps=20, backend=backend)


@pytest.mark.parametrize("backend", [None, "cuda", "triton", "eager"])
def test_a_captured_refinement_follows_its_inputs(backend: str | None) -> None:
    static = [tensor.cuda() for tensor in inputs(0)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        try:
            refine(*static, backend=backend)  # compiles, and fills torch's memory pool
        except nk.BackendUnavailableError as error:
            pytest.skip(str(error))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = refine(*static, backend=backend)
    for seed in (1, 2):
        fresh = inputs(seed)
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        torch.testing.assert_close(result.cpu(), refine(*fresh), rtol=1e-4, atol=1e-5)


def test_a_walk_does_not_wait_for_the_gpu() -> None:
    q, k, seeds = (tensor.cuda() for tensor in inputs(0))
    refine(q, k, seeds)
    torch.cuda.set_sync_debug_mode("error")
    try:
        refine(q, k, seeds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
