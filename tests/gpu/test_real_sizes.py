"""The sizes that users have, against plain torch in float64; and the same code at a small size without a GPU.

Small sizes reach neither many tiles nor large offsets: N = 4096 tokens, heads of 40 to 128, twenty heads, 171 labels,
1024 cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from tests.ops.problems import relative_error
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.grids import window_neighbours

on_gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# of results against float64 of the same inputs; rounded products of 16 bits are judged by what plain torch loses there
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
BLOCK = 512  # queries at a time in the definition


@dataclass(frozen=True)
class Layer:
    """One layer of attention on a square grid."""

    side: int = 64
    heads: int = 8
    head_size: int = 40
    window: int = 7
    cells: int = 16

    def small(self) -> Layer:
        """With the same heads on a grid that a CPU can do."""
        return replace(self, side=8, heads=min(self.heads, 3), window=3, cells=4)


LAYERS = {
    "d = 40": Layer(),
    "d = 64": Layer(head_size=64),
    "d = 72": Layer(head_size=72),
    "d = 128": Layer(head_size=128),
    "twenty heads": Layer(heads=20, head_size=64),
    "1024 cells": Layer(cells=32),
}


@dataclass(frozen=True)
class Walk:
    """Twenty steps on a square grid."""

    side: int = 64
    labels: int = 21
    cells: int = 16
    steps: int = 20
    window: int = 7

    def small(self) -> Walk:
        """A few labels on a grid that a CPU can do."""
        return replace(self, side=8, labels=min(self.labels, 5), cells=4, steps=3, window=3)


WALKS = {
    "21 labels": Walk(),
    "171 labels": Walk(labels=171),
    "1024 cells": Walk(cells=32),
    "1024 cells, 150 labels, 128 × 128": Walk(side=128, labels=150, cells=32),
}


def check_layer(layer: Layer, dtype: torch.dtype, device: str, backend: str | None) -> None:
    """Entropy, lse, both affinities and the marginal, against whole maps of float64, some queries at a time."""
    grid, tokens = (layer.side, layer.side), layer.side**2
    generator = torch.Generator().manual_seed(0)
    shape = (1, tokens, layer.heads, layer.head_size)
    q, k = (torch.randn(shape, generator=generator).to(device, dtype).transpose(1, 2) for _ in range(2))
    entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend=backend)
    w = nk.head_weights(entropy, num_keys=tokens)
    local = nk.local_affinity(q, k, w, grid=grid, window=layer.window, lse=lse, backend=backend)
    coarse = nk.global_affinity(q, k, w, grid=grid, cells=layer.cells, lse=lse, backend=backend)
    marginal = nk.attention_marginal(q, k, lse=lse, backend=backend)

    average = reference.cell_average(grid, (layer.cells, layer.cells)).to(device)
    in_cell = (average > 0).double()
    neighbour, inside = window_neighbours(grid, (layer.window, layer.window), device)
    wanted: dict[str, list[Tensor]] = {"entropy": [], "lse": [], "window": [], "cells": []}
    received = torch.zeros(1, layer.heads, tokens, dtype=torch.float64, device=device)
    for start in range(0, tokens, BLOCK):
        rows = slice(start, start + BLOCK)
        scores = q[:, :, rows].double() @ k.double().transpose(-1, -2) * layer.head_size**-0.5
        maps = scores.softmax(-1)
        fused = (maps * w.double()[:, :, None, None]).sum(1)
        kept = fused.gather(2, neighbour[rows].expand(1, -1, -1)) * inside[rows]
        wanted["entropy"].append(torch.special.entr(maps).sum(-1))
        wanted["lse"].append(scores.logsumexp(-1))
        wanted["window"].append(kept / kept.sum(-1, keepdim=True))
        wanted["cells"].append(fused @ in_cell)
        received += maps.sum(2)
    found = {"entropy": entropy, "lse": lse, "window": local.values * inside, "cells": coarse.u}
    for name, result in found.items():
        expected = torch.cat(wanted[name], dim=-1 if name in ("entropy", "lse") else 1)
        assert relative_error(result, expected) < TOLERANCE[dtype], name
    assert relative_error(marginal, received / tokens) < TOLERANCE[dtype]


def check_walk(walk: Walk, dtype: torch.dtype, device: str, backend: str | None) -> None:
    """The structured walk against the plain one in float64 on the same stored weights."""
    grid, tokens = (walk.side, walk.side), walk.side**2
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randn(1, tokens, walk.labels, generator=generator).mul(3).softmax(-1).to(device)
    inside = window_neighbours(grid, (walk.window, walk.window))[1]
    values = (torch.rand(1, tokens, walk.window**2, generator=generator) + 0.01) * inside
    u = torch.rand(1, tokens, walk.cells**2, generator=generator)
    values, u = (part / part.sum(-1, keepdim=True) for part in (values, u))
    local = nk.LocalAffinity(values.to(device, dtype), grid=grid, window=walk.window)
    coarse = nk.LowRankAffinity(u.to(device, dtype), grid=grid, cells=walk.cells)
    affinity = nk.mix(coarse, local)
    result = nk.random_walk(seeds, affinity, alpha=0.9, steps=walk.steps, backend=backend)
    double = affinity.to(torch.float64)
    expected = nk.random_walk(seeds.double(), double, alpha=0.9, steps=walk.steps, backend="eager")
    assert relative_error(result, expected) < (1e-5 if dtype == torch.float32 else 2e-4)


def check_sparse(kind: str, small: bool, dtype: torch.dtype, device: str, backend: str | None) -> None:
    """Ten steps over pixels as PAMR sees them, planes of weights at six dilations; or over 400 neighbours a token."""
    generator = torch.Generator().manual_seed(2)

    def stochastic(*shape: int, dim: int) -> Tensor:
        weights = torch.rand(shape, generator=generator)
        return (weights / weights.sum(dim, keepdim=True)).to(device, dtype)

    affinity: nk.LocalAffinity | nk.GraphAffinity
    if kind == "pixels":
        grid, dilations = ((12, 20), (1, 2, 9)) if small else ((480, 640), (1, 2, 4, 8, 12, 24))
        tokens = grid[0] * grid[1]
        values = stochastic(1, 8 * len(dilations), tokens, dim=1).transpose(1, 2)
        options = {"window": 3, "dilations": dilations, "centre": False, "border": "clamp"}
        affinity = nk.LocalAffinity(values, grid=grid, **options)
    else:
        tokens, count = (60, 7) if small else (4096, 400)
        columns = torch.randint(0, tokens, (1, tokens * count), generator=generator, dtype=torch.int32).to(device)
        pointers = torch.arange(0, tokens * count + 1, count).to(device)
        affinity = nk.GraphAffinity(pointers, columns, stochastic(1, tokens, count, dim=2).flatten(1))
    seeds = torch.randn(1, tokens, 5 if small else 21, generator=generator).softmax(-1).to(device)
    result = nk.random_walk(seeds, affinity, alpha=0.8, steps=10, normalize=False, backend=backend)
    double = affinity.to(torch.float64)
    expected = nk.random_walk(seeds.double(), double, alpha=0.8, steps=10, normalize=False, backend="eager")
    assert relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["pixels", "neighbours"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu), "cpu"])
def test_sparse_walk(kind: str, dtype: torch.dtype, device: str) -> None:
    on_cuda = device == "cuda"
    check_sparse(kind, not on_cuda, dtype, device, "triton" if on_cuda else "eager")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu), "cpu"])
def test_layer(name: str, dtype: torch.dtype, device: str) -> None:
    layer = LAYERS[name] if device == "cuda" else LAYERS[name].small()
    check_layer(layer, dtype, device, "triton" if device == "cuda" else "eager")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize(
    ("device", "backend"),
    [pytest.param("cuda", "triton", marks=on_gpu), pytest.param("cuda", "cuda", marks=on_gpu), ("cpu", "eager")],
)
def test_walk(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    try:
        check_walk(WALKS[name] if device == "cuda" else WALKS[name].small(), dtype, device, backend)
    except nk.BackendUnavailableError as error:
        pytest.skip(str(error))
