"""Stage 1 and 2 from queries and keys: the compiled kernels against what one writes in plain torch today.

`make bench` times each candidate by itself. `python -m benchmarks.bench_attention` measures candidates and baselines
alternately, so that a change of the machine's mood meets both, and writes benchmarks/results/attention_cpu.csv.
"""

from __future__ import annotations

import csv
import datetime
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.ratios import Pair, cpu_name, measure
from torch import Tensor
from torch.nn import functional

import nerve_kernels as nk
from nerve_kernels.grids import window_neighbours
from nerve_kernels.segmentation.files import write_whole

SHAPES = {"8 x 4096 x 40": (8, 64, 40), "5 x 4096 x 64": (5, 64, 64), "8 x 1024 x 80": (8, 32, 80)}
WINDOW, CELLS = 7, 16
RESULTS = Path(__file__).parent / "results" / "attention_cpu.csv"


def queries_and_keys(heads: int, side: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, heads, side * side, size)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def naive_maps(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def naive_entropy(q: Tensor, k: Tensor) -> Tensor:
    return torch.special.entr(naive_maps(q, k)).sum(-1)


def naive_affinities(q: Tensor, k: Tensor, side: int) -> Tensor:
    """Maps, entropies, weights, weighted sum, a gather of each window, sums over square cells."""
    maps = naive_maps(q, k)
    w = nk.head_weights(torch.special.entr(maps).sum(-1), num_keys=side * side)
    fused = (maps * w[:, :, None, None]).sum(1)
    neighbour, inside = window_neighbours((side, side), (WINDOW, WINDOW))
    local = fused[0].gather(1, neighbour) * inside
    cell = side // CELLS
    sums = fused[0].view(-1, CELLS, cell, CELLS, cell).sum((2, 4)).flatten(1)
    return torch.cat([local / local.sum(-1, keepdim=True), sums], dim=1)


def affinities(q: Tensor, k: Tensor, side: int, backend: str) -> Tensor:
    """Window weights and cell sums side by side, (N, 49 + 256)."""
    entropy, lse = nk.attention_entropy(q, k, return_lse=True, backend=backend)
    w = nk.head_weights(entropy, num_keys=side * side)
    grid = (side, side)
    local = nk.local_affinity(q, k, w, grid=grid, window=WINDOW, lse=lse, backend=backend)
    low_rank = nk.global_affinity(q, k, w, grid=grid, cells=CELLS, lse=lse, backend=backend)
    return torch.cat([local.values[0], low_rank.u[0]], dim=1)


def entropy_candidates(q: Tensor, k: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "cpp": lambda: nk.attention_entropy(q, k, backend="cpp"),
        "eager": lambda: nk.attention_entropy(q, k, backend="eager"),
        "naive": lambda: naive_entropy(q, k),
        "sdpa": lambda: functional.scaled_dot_product_attention(q, k, k),  # no entropy, for its speed alone
    }


def affinity_candidates(q: Tensor, k: Tensor, side: int) -> dict[str, Callable[[], Tensor]]:
    return {
        "cpp": lambda: affinities(q, k, side, "cpp"),
        "eager": lambda: affinities(q, k, side, "eager"),
        "naive": lambda: naive_affinities(q, k, side),
    }


@pytest.mark.parametrize("name", ["cpp", "eager", "naive", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_attention_entropy(benchmark: Callable[..., Tensor], name: str, shape: str) -> None:
    heads, side, size = SHAPES[shape]
    candidates = entropy_candidates(*queries_and_keys(heads, side, size))
    result = benchmark(candidates[name])
    if name != "sdpa":
        torch.testing.assert_close(result, candidates["eager"](), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cpp", "eager", "naive"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_both_affinities(benchmark: Callable[..., Tensor], name: str, shape: str) -> None:
    heads, side, size = SHAPES[shape]
    q, k = queries_and_keys(heads, side, size)
    candidates = affinity_candidates(q, k, side)
    torch.testing.assert_close(benchmark(candidates[name]), candidates["eager"](), rtol=1e-4, atol=1e-6)


def pairs() -> list[Pair]:
    """What is held against what."""
    found = []
    for shape, (heads, side, size) in SHAPES.items():
        q, k = queries_and_keys(heads, side, size)
        entropy, affinity = entropy_candidates(q, k), affinity_candidates(q, k, side)
        found += [
            Pair("attention_entropy", shape, name, entropy["cpp"], entropy[name], compare=name != "sdpa")
            for name in ("naive", "sdpa", "eager")
        ]
        what = "entropy + weights + local 7 + global 16x16"
        found += [Pair(what, shape, name, affinity["cpp"], affinity[name]) for name in ("naive", "eager")]
    return found


def main(rounds: int = 9) -> None:
    """Measure every pair and write the table."""
    rows = []
    for pair in pairs():
        ours, theirs = measure(pair, rounds)
        rows.append(
            {
                "operation": pair.operation,
                "heads x tokens x size": pair.size,
                "peer": pair.peer,
                "ours_ms": f"{ours:.2f}",
                "peer_ms": f"{theirs:.2f}",
                "ratio": f"{theirs / ours:.2f}",
                "dtype": "float32",
                "threads": torch.get_num_threads(),
                "load_5_minutes": f"{os.getloadavg()[1]:.1f}",  # well above `threads`: the machine was not ours alone
                "machine": cpu_name(),
                "torch": torch.__version__,
                "nerve_kernels": nk.__version__,
                "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            }
        )
        print(*list(rows[-1].values())[:6], sep="\t")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(RESULTS, text.getvalue().encode())


if __name__ == "__main__":
    main()
