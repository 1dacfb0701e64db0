"""The public walk on a GPU agrees with the same walk on the CPU."""

from __future__ import annotations

import pytest
import torch

import nerve_kernels as nk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
]


@pytest.mark.parametrize("labels", [2, 21])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_walk_agrees_with_the_cpu(beta: float, labels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = (16, 20)
    q, k = (torch.randn(2, 4, 320, 40, generator=generator) for _ in range(2))
    seeds = torch.rand(2, 320, labels, generator=generator).softmax(-1)

    def walk(device: str) -> torch.Tensor:
        query, key = q.to(device), k.to(device)
        weights = nk.head_weights(nk.attention_entropy(query, key), num_keys=320)
        local = nk.local_affinity(query, key, weights, grid=grid, window=5)
        coarse = nk.global_affinity(query, key, weights, grid=grid, cells=(8, 10))
        return nk.random_walk(seeds.to(device), nk.mix(coarse, local, beta=beta), alpha=0.8, steps=10).cpu()

    torch.testing.assert_close(walk("cuda"), walk("cpu"), rtol=1e-4, atol=1e-5)
