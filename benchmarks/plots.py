"""The rows as plots: sweeps of N, C and L, a roofline, bars against peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

Rows = Sequence[dict[str, str]]
OURS_COLOUR = "#1f5fa8"
PEER_COLOURS = ["#d9822b", "#3d9a50", "#8e5bb5", "#777777", "#b8443a"]
AXES = {
    "N": ("tokens N", lambda row: int(row["height"]) * int(row["width"])),
    "C": ("labels C", lambda row: int(row["labels"])),
    "L": ("steps L", lambda row: int(row["steps"])),
}


def draw_all(rows: Rows, folder: Path) -> list[Path]:
    """Every plot that the rows have data for."""
    present = [row for row in rows if row["median_ms"]]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    drawings: dict[str, Callable[[Rows], Any]] = {"sweeps": sweeps, "roofline": roofline, "against_peers": bars}
    for name, draw in drawings.items():
        figure = draw(present)
        if figure is not None:
            path = folder / f"{present[0]['device']}_{name}.png"
            figure.savefig(path, dpi=130, bbox_inches="tight")
            plt.close(figure)
            written.append(path)
    return written


def footnote(figure: Any, row: dict[str, str]) -> None:
    """Where the figures come from."""
    text = f"{row['machine']}, {row['threads']} threads, {row['dtype']}, torch {row['torch']}, {row['date']}"
    # a fixed distance below the axes, however tall it is
    figure.text(0.5, -0.15 / figure.get_figheight(), text, ha="center", va="top", fontsize=8, color="#555555")


def growth(line: Rows, of_row: Callable[[dict[str, str]], int]) -> float | None:
    """The exponent that time grows with over the upper half of a sweep, where no constant cost hides it."""
    first, last = line[(len(line) - 1) // 2], line[-1]
    if of_row(first) == of_row(last):
        return None
    times = float(last["median_ms"]) / float(first["median_ms"])
    return math.log(times) / math.log(of_row(last) / of_row(first))


def sweeps(rows: Rows) -> Any:
    """Time above with the power it grows with, memory below, one column for each operation and quantity."""
    swept = [row for row in rows if row["sweep"]]
    panels = list(dict.fromkeys((row["operation"], row["sweep"]) for row in swept))
    if not panels:
        return None
    figure, axes = plt.subplots(2, len(panels), figsize=(3.6 * len(panels), 6.4), squeeze=False)
    for column, (operation, quantity) in enumerate(panels):
        label, of_row = AXES[quantity]
        chosen = [row for row in swept if (row["operation"], row["sweep"]) == (operation, quantity)]
        for name in dict.fromkeys(row["implementation"] for row in chosen):
            line = sorted((row for row in chosen if row["implementation"] == name), key=of_row)
            power = growth(line, of_row)
            label_of_line = name if power is None else f"{name}: {quantity}^{power:.2f}"
            style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "label": label_of_line}
            peers = len(axes[0, column].lines) - 1
            style |= (
                {"color": OURS_COLOUR, "linewidth": 2.2}
                if line[0]["kind"] == "ours"
                else {"color": PEER_COLOURS[peers % len(PEER_COLOURS)], "linewidth": 1.1}
            )
            axes[0, column].plot([of_row(row) for row in line], [float(row["median_ms"]) for row in line], **style)
            measured = [row for row in line if row["peak_extra_mib"]]
            # a page is the least that can be seen
            memory = [max(float(row["peak_extra_mib"]), 4 / 1024) for row in measured]
            axes[1, column].plot([of_row(row) for row in measured], memory, **style)
        axes[0, column].set_title(f"{operation} over {quantity}", fontsize=10)
        axes[1, column].set_xlabel(label)
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log")
            axis.grid(visible=True, which="major", linewidth=0.4)
        # room for the legend above the lines
        low, high = axes[0, column].get_ylim()
        axes[0, column].set_ylim(low, high * (high / low) ** 0.4)
        axes[0, column].legend(fontsize=7, loc="upper left")
    axes[0, 0].set_ylabel("median time (ms)")
    axes[1, 0].set_ylabel("peak extra memory (MiB)")
    figure.tight_layout()
    footnote(figure, swept[0])
    return figure


def roofline(rows: Rows) -> Any:
    """Our operations below the machine's read bandwidth and FMA peak, by compulsory bytes."""
    ours = [row for row in rows if row["kind"] == "ours" and row["gflops"] and row["gbytes_per_s"] and not row["sweep"]]
    if not ours:
        return None
    best: dict[tuple[str, str], dict[str, str]] = {}
    for row in ours:
        best.setdefault((row["operation"], row["size"]), row)  # the best backend comes first
    peak, bandwidth = float(ours[0]["peak_gflops"]), float(ours[0]["peak_gbytes_per_s"])
    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    intensities = [float(row["gflops"]) / float(row["gbytes_per_s"]) for row in best.values()]
    edges = [min(*intensities, 0.1) / 2, max(*intensities, peak / bandwidth) * 2]
    corners = sorted({edges[0], peak / bandwidth, edges[1]})
    axis.plot(corners, [min(peak, bandwidth * x) for x in corners], color="#333333", linewidth=1.5)
    axis.text(corners[-1], peak * 1.08, f"FMA peak {peak:.0f} GFLOP/s", ha="right", fontsize=8)
    axis.text(corners[0] * 1.1, bandwidth * corners[0] * 1.6, f"read {bandwidth:.0f} GB/s", rotation=30, fontsize=8)
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for number, operation in enumerate(dict.fromkeys(row["operation"] for row in ours)):
        points = [row for (name, _), row in best.items() if name == operation]
        axis.plot(
            [float(row["gflops"]) / float(row["gbytes_per_s"]) for row in points],
            [float(row["gflops"]) for row in points],
            "o",
            color=colours[number % len(colours)],
            markersize=4.5,
            label=operation,
        )
    axis.set(xscale="log", yscale="log", xlabel="operations per compulsory byte", ylabel="GFLOP/s")
    axis.grid(visible=True, which="major", linewidth=0.4)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    footnote(figure, ours[0])
    return figure


def times(ratio: float) -> str:
    """Two digits, and no powers of ten."""
    return f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


def bars(rows: Rows) -> Any:
    """How many times longer every contender takes than our best, at the first size of each operation."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        group = groups.setdefault(row["operation"], [])
        if not row["sweep"] and (not group or group[0]["size"] == row["size"]):
            group.append(row)
    entries = []
    for operation, group in groups.items():
        best = float(group[0]["median_ms"])
        entries.append((f"{operation}  [{group[0]['size']}]: {group[0]['implementation']}, {best:.3g} ms", 1.0, True))
        for row in group[1:]:
            star = "" if row["same_result"] == "True" else " *"
            entries.append((f"{row['implementation']}{star}", float(row["median_ms"]) / best, False))
    if not entries:
        return None
    figure, axis = plt.subplots(figsize=(8, 0.21 * len(entries) + 0.8))
    places = range(len(entries), 0, -1)
    axis.barh(
        places,
        [ratio for _, ratio, _ in entries],
        color=[OURS_COLOUR if o else "#b9b9b9" for *_, o in entries],
        height=0.7,
    )
    for place, (_, ratio, ours) in zip(places, entries, strict=True):
        axis.text(ratio * 1.05, place, "" if ours else times(ratio), va="center", fontsize=7)
    axis.set_yticks(list(places), [name for name, *_ in entries], fontsize=7)
    axis.set(
        xscale="log", xlabel="time against ours (* another answer to the same question)", ylim=(0.3, len(entries) + 0.7)
    )
    axis.axvline(1, color=OURS_COLOUR, linewidth=0.8)
    axis.grid(visible=True, axis="x", linewidth=0.4)
    footnote(figure, rows[0])
    return figure
