"""How the walk's time grows with tokens, labels and steps on the CPU: ``python -m benchmarks.walk_scaling``.

Medians in one process, compiled backend, float32, mixed affinity with window 7 and 16² cells. Writes
``benchmarks/results/walk_cpu.csv`` and the plot ``walk_scaling.png`` beside it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from benchmarks.machine import processor_name
from benchmarks.measure import milliseconds
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import nerve_kernels as nk
from nerve_kernels.segmentation.files import write_whole

RESULT = Path(__file__).parent / "results" / "walk_cpu.csv"
PLOT = RESULT.with_name("walk_scaling.png")


@dataclass(frozen=True)
class Size:
    """One walk."""

    side: int = 64
    labels: int = 21
    steps: int = 20

    @property
    def tokens(self) -> int:
        """N."""
        return self.side**2


SWEEPS = {
    "tokens": [replace(Size(), side=side) for side in (32, 48, 64, 96, 128, 192, 256)],
    "labels": [replace(Size(), labels=labels) for labels in (1, 8, 21, 64, 171, 512, 1203)],
    "steps": [replace(Size(), steps=steps) for steps in (0, 5, 10, 20, 40, 80)],
}


def median_milliseconds(size: Size, rounds: int) -> float:
    """The median of ``rounds`` calls after a warm-up."""
    generator = torch.Generator().manual_seed(0)
    grid = (size.side, size.side)
    seeds = torch.rand(1, size.tokens, size.labels, generator=generator).softmax(-1)
    values = torch.rand(1, size.tokens, 49, generator=generator)
    u = torch.rand(1, size.tokens, 256, generator=generator)
    affinity = nk.mix(
        nk.LowRankAffinity(u / u.sum(-1, keepdim=True), grid=grid, cells=16),
        nk.LocalAffinity(values / values.sum(-1, keepdim=True), grid=grid, window=7),
        0.5,
    )

    def walk() -> torch.Tensor:
        return nk.random_walk(seeds, affinity, alpha=0.9, steps=size.steps, normalize=False, backend="cpp")

    walk()
    return statistics.median(milliseconds(walk, "cpu") for _ in range(rounds))


def growth(sizes: list[float], times: list[float]) -> float:
    """The exponent of the power law through the two ends of a sweep: 1 is linear."""
    return math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])


def plot(rows: list[dict[str, object]]) -> None:
    """One panel a sweep, both axes logarithmic, with the line of slope 1 through the last point."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, sweep in zip(figure.subplots(1, 3), SWEEPS, strict=True):
        points = [(row[sweep], float(str(row["milliseconds"]))) for row in rows if row["sweep"] == sweep and row[sweep]]
        sizes, times = zip(*points, strict=True)
        axes.loglog(sizes, times, "o-", label="measured")
        axes.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], "--", color="grey", label="linear")
        axes.set_xlabel(sweep)
        axes.set_ylabel("milliseconds")
        axes.set_xticks(sizes, [str(size) for size in sizes], rotation=40, fontsize=8)
        axes.minorticks_off()
        axes.legend()
    figure.suptitle(f"random_walk on the CPU, {rows[0]['machine']}, {rows[0]['threads']} threads, {rows[0]['date']}")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_whole(PLOT, image.getvalue())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, object]] = []
    table = Table("sweep", "tokens", "labels", "steps", "milliseconds")
    for sweep, sizes in SWEEPS.items():
        times = []
        for size in sizes:
            times.append(median_milliseconds(size, rounds))
            table.add_row(sweep, str(size.tokens), str(size.labels), str(size.steps), f"{times[-1]:.2f}")
            rows.append(
                {
                    "sweep": sweep,
                    "tokens": size.tokens,
                    **asdict(size),
                    "milliseconds": f"{times[-1]:.3f}",
                    "dtype": "float32",
                    "threads": torch.get_num_threads(),
                    "machine": processor_name(),
                    "torch": torch.__version__,
                    "nerve_kernels": nk.__version__,
                    "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
                }
            )
        positive = [(float(getattr(size, sweep)), time) for size, time in zip(sizes, times, strict=True) if size.steps]
        exponent = growth(*(list(column) for column in zip(*positive, strict=True)))
        table.add_row(sweep, "", "", "", f"grows with power {exponent:.2f}", end_section=True)
    Console().print(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(RESULT, text.getvalue().encode())
    plot(rows)


if __name__ == "__main__":
    main()
