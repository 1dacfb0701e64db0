"""Ours against what a user would write today, timed alternately: ``python -m benchmarks.ratios``.

Each pair runs A B A B … in one process after a warm-up, with results compared before anything is timed; the ratio of
the medians is what counts, since machines drift. Writes ``benchmarks/results/cpu_ratios.csv`` with machine, versions,
threads and date.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.problems import as_csr
from rich.console import Console
from rich.table import Table
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels.segmentation.files import write_whole

RESULT = Path(__file__).parent / "results" / "cpu_ratios.csv"
Function = Callable[[], Tensor]
Grid = tuple[int, int]
WALK = "random_walk, 20 steps"


@dataclass(frozen=True)
class Pair:
    """Two ways to the same result (``compare=False``: the same inputs and the same number of operations only)."""

    operation: str
    size: str
    peer: str
    ours: Function
    theirs: Function
    compare: bool = True


def attention_pairs(generator: torch.Generator) -> list[Pair]:
    """Entropy at the size of Stable Diffusion's largest layer."""
    q, k, v = (torch.randn(1, 8, 4096, 40, generator=generator) for _ in range(3))

    def naive() -> Tensor:
        return torch.special.entr((q @ k.transpose(-1, -2) * 40**-0.5).softmax(-1)).sum(-1)

    size = "(1, 8, 4096, 40)"
    return [
        Pair("attention_entropy", size, "softmax, then entropy", lambda: nk.attention_entropy(q, k), naive),
        Pair(
            "attention_entropy",
            size,
            "scaled_dot_product_attention",
            lambda: nk.attention_entropy(q, k),
            lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
            compare=False,
        ),
    ]


def walk_pairs(generator: torch.Generator) -> list[Pair]:
    """The window product and twenty steps of the mixed walk, window 7."""
    pairs = []
    for height, width, labels, cells in [
        (64, 64, 21, 16),
        (64, 64, 171, 16),
        (128, 128, 150, 32),
        (256, 256, 19, 32),
    ]:
        tokens, grid = height * width, (height, width)
        seeds = torch.rand(1, tokens, labels, generator=generator).softmax(-1)
        values = torch.rand(1, tokens, 49, generator=generator)
        local = nk.LocalAffinity(values / values.sum(-1, keepdim=True), grid=grid, window=7)
        u = torch.rand(1, tokens, cells * cells, generator=generator)
        u = u / u.sum(-1, keepdim=True)
        sparse, size = as_csr(local.values, grid, (7, 7)), f"{height}×{width}, C = {labels}"
        mixed = nk.mix(nk.LowRankAffinity(u, grid=grid, cells=cells), local, 0.5)
        with_cells = f"{size}, cells {cells}²"

        def walk(seeds: Tensor = seeds, mixed: nk.MixedAffinity = mixed) -> Tensor:
            return nk.random_walk(seeds, mixed, alpha=0.9, steps=20, normalize=False)

        def structured(
            seeds: Tensor = seeds, sparse: Tensor = sparse, u: Tensor = u, grid: Grid = grid, cells: int = cells
        ) -> Tensor:
            return composite(seeds, sparse, u[0], grid, cells)

        pairs.append(Pair(WALK, with_cells, "loop over CSR + pooled U", walk, structured))
        if height == 64:
            dense = mixed.to_dense()
            pairs.append(
                Pair(
                    "S_local @ P",
                    size,
                    "sparse CSR product",
                    lambda local=local, seeds=seeds: local @ seeds,
                    lambda sparse=sparse, seeds=seeds: (sparse @ seeds[0])[None],
                )
            )
            pairs.append(Pair(WALK, with_cells, "loop over dense S", walk, lambda d=dense, s=seeds: dense_walk(s, d)))
        if height == 128:
            low = mixed.to(torch.bfloat16)
            pairs.append(
                Pair(
                    f"{WALK}, bfloat16 storage",
                    with_cells,
                    "ours, float32 storage",
                    lambda seeds=seeds, low=low: nk.random_walk(seeds, low, alpha=0.9, steps=20, normalize=False),
                    walk,
                )
            )
    return pairs


def dense_walk(seeds: Tensor, affinity: Tensor) -> Tensor:
    """What one writes first: a dense S and a loop."""
    p = seeds[0]
    for _ in range(20):
        p = 0.1 * seeds[0] + 0.9 * (affinity[0] @ p)
    return p[None]


def composite(seeds: Tensor, sparse: Tensor, u: Tensor, grid: Grid, cells: int) -> Tensor:
    """The best structured loop in plain torch: sparse local part, pooled global part."""
    restart, p, labels = 0.1 * seeds[0], seeds[0], seeds.shape[-1]
    for _ in range(20):
        blocks = p.view(cells, grid[0] // cells, cells, grid[1] // cells, labels)
        pooled = blocks.mean((1, 3)).view(cells * cells, labels)
        p = restart + 0.9 * (0.5 * (u @ pooled) + 0.5 * (sparse @ p))
    return p[None]


def milliseconds(function: Function) -> float:
    """One call."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def measure(pair: Pair, rounds: int) -> tuple[float, float]:
    """Medians of alternate calls, in milliseconds."""
    first, second = pair.ours(), pair.theirs()
    if pair.compare and not torch.allclose(first, second, atol=1e-4):
        raise AssertionError(f"{pair.operation} and {pair.peer} disagree by {(first - second).abs().max():.3g}")
    times = [(milliseconds(pair.ours), milliseconds(pair.theirs)) for _ in range(rounds)]
    return statistics.median(ours for ours, _ in times), statistics.median(theirs for _, theirs in times)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    generator = torch.Generator().manual_seed(0)
    warnings.filterwarnings("ignore", message="Sparse")  # torch's own remarks about its CSR tensors
    console, table = Console(), Table("operation", "size", "ours (ms)", "peer", "peer (ms)", "ratio")
    rows = []
    for pair in attention_pairs(generator) + walk_pairs(generator):
        ours, theirs = measure(pair, rounds)
        table.add_row(pair.operation, pair.size, f"{ours:.1f}", pair.peer, f"{theirs:.1f}", f"{theirs / ours:.2f} ×")
        rows.append(
            {
                "operation": pair.operation,
                "size": pair.size,
                "peer": pair.peer,
                "ours_ms": f"{ours:.2f}",
                "peer_ms": f"{theirs:.2f}",
                "ratio": f"{theirs / ours:.2f}",
                "threads": torch.get_num_threads(),
                "machine": cpu_name(),
                "torch": torch.__version__,
                "nerve_kernels": nk.__version__,
                "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            }
        )
    console.print(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(RESULT, text.getvalue().encode())


def cpu_name() -> str:
    """The processor as Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{names[0] if names else platform.processor()}{', AVX-512' if 'avx512f' in flags else ''}"


if __name__ == "__main__":
    main()
