"""What an evaluation leaves to read: JSON with everything, Markdown, a chart, overlays of the extremes."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from nerve_kernels.segmentation.output.files import write_atomic
from nerve_kernels.segmentation.output.render import render_overlay

from .class_lists import IGNORED
from .runner import Evaluation
from .scorer import MEASURED_IMAGES, Scorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHART = "chart.png"


def write_report(folder: Path, scorer: Scorer, evaluation: Evaluation) -> dict[str, Any]:
    """Write ``result.json``, ``report.md``, ``chart.png`` and ``overlays/`` into a folder.

    Args:
        folder: of the run.
        scorer: what it was made with; segments the best and worst images once more.
        evaluation: what it has found.

    Returns:
        What ``result.json`` holds.
    """
    result = summarize(scorer, evaluation)
    overlays = _write_overlays(folder, scorer, evaluation)
    write_atomic(folder / CHART, _chart(evaluation))
    write_atomic(folder / "report.md", _markdown(result, overlays).encode())
    # last, so that whoever finds it finds everything
    write_atomic(folder / "result.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def summarize(scorer: Scorer, evaluation: Evaluation) -> dict[str, Any]:
    """Everything an evaluation has found, ready for JSON."""
    return {
        **scorer.description,
        "class_names": list(scorer.dataset.classes),
        "images": evaluation.images,
        "failures": [{"image": name, "reason": reason} for name, reason in evaluation.failures],
        "results": {
            name: {
                "miou": score.miou,
                "pixel_accuracy": score.pixel_accuracy,
                "iou": score.per_class,
                "confusion": evaluation.confusions[name].tolist(),
                **_boundary(evaluation, name),
            }
            for name, score in evaluation.scores.items()
        },
        "last_run": {
            "processes": evaluation.processes,
            "threads": torch.get_num_threads(),
            "resumed_images": evaluation.resumed,
            "seconds": evaluation.seconds,
            "images_per_second": evaluation.images_per_second,
            "peak_memory_bytes": evaluation.peak_memory_bytes,
            "peak_gpu_memory_bytes": evaluation.peak_gpu_memory_bytes,
            "after_seeds_and_affinity": {name: cost._asdict() for name, cost in evaluation.costs.items()},
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _markdown(result: Mapping[str, Any], overlays: Mapping[str, str]) -> str:
    run = result["last_run"]
    lines = [
        f"# {result['dataset']}",
        "",
        f"{result['images']} images, {len(result['failures'])} could not be scored; every image was asked for "
        + ("all classes." if result["vocabulary"] == "dataset" else "the classes in its truth."),
        "",
        *_table(result),
    ]
    lines += ["", f"![Scores]({CHART})", "", "| class | " + " | ".join(result["results"]) + " |"]
    lines += ["|---" * (1 + len(result["results"])) + "|"]
    for name in result["class_names"]:
        found = [one["iou"].get(name) for one in result["results"].values()]
        if any(iou is not None for iou in found):
            lines.append(
                f"| {name} | " + " | ".join("–" if iou is None else f"{100 * iou:.1f}" for iou in found) + " |"
            )
    computed = result["images"] - run["resumed_images"]
    lines += ["", f"The last run computed {computed} images in {run['seconds']:.1f} s: "]
    lines[-1] += f"{run['images_per_second']:.2f} images/s with {run['processes']} × {run['threads']} threads."
    for place, key in (("A process", "peak_memory_bytes"), ("A GPU", "peak_gpu_memory_bytes")):
        if run[key] is not None:
            lines.append(f"{place} used at most {run[key] / 2**20:.0f} MB.")
    lines += [f"\n{title}\n\n![{title}]({path})" for title, path in overlays.items()]
    if result["failures"]:
        lines += ["", "Not scored:", ""]
        lines += [f"- {failure['image']}: {failure['reason']}" for failure in result["failures"]]
    return "\n".join(lines) + "\n"


def _boundary(evaluation: Evaluation, name: str) -> dict[str, Any]:
    if not evaluation.boundaries:
        return {}
    by_class = evaluation.boundaries[name]
    return {"boundary_miou": fmean(by_class.values()), "boundary_iou": dict(by_class)}


def _table(result: Mapping[str, Any]) -> list[str]:
    """A row for each variant: its scores, and what it cost where that was measured."""
    costs = result["last_run"]["after_seeds_and_affinity"]
    columns: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
        "mIoU (%)": lambda _, found: f"{100 * found['miou']:.2f}",
        "pixel accuracy (%)": lambda _, found: f"{100 * found['pixel_accuracy']:.2f}",
    }
    if any("boundary_miou" in found for found in result["results"].values()):
        columns["boundary IoU (%)"] = lambda _, found: f"{100 * found['boundary_miou']:.2f}"
    if costs:
        columns["ms"] = lambda name, _: f"{1000 * costs[name]['seconds']:.1f}"
    if any(cost["peak_bytes"] is not None for cost in costs.values()):
        columns["MB"] = lambda name, _: f"{costs[name]['peak_bytes'] / 2**20:.1f}"
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, found in result["results"].items():
        lines.append(f"| {name} | " + " | ".join(column(name, found) for column in columns.values()) + " |")
    if costs:
        lines += ["", f"ms and MB: what follows seeds and affinity, the median of up to {MEASURED_IMAGES} images."]
    return lines


def _write_overlays(folder: Path, scorer: Scorer, evaluation: Evaluation) -> dict[str, str]:
    """Titles and relative paths of the overlays: truth on the left, the first variant on the right."""
    variant = next(iter(scorer.variants))
    written = {}
    for kind, indices in (("best", evaluation.best), ("worst", evaluation.worst)):
        for place, index in enumerate(indices, start=1):
            labelled = scorer.dataset[index]
            truth = torch.from_numpy(labelled.mask.astype("int64"))
            found = torch.from_numpy(scorer.label_map(labelled, variant))
            background = 0 if scorer.dataset.has_background else None
            panels = [
                render_overlay(labelled.image, labels, scorer.dataset.classes, background=background)
                for labels in (torch.where(truth == IGNORED, -1, truth), found)
            ]
            path = f"overlays/{kind}_{place}.png"
            write_atomic(folder / path, _png(_beside(panels)))
            written[f"{kind.capitalize()} {place}: {labelled.identifier}, the truth and what was found"] = path
    return written


def _beside(panels: list[Image.Image]) -> Image.Image:
    gap = 12
    size = sum(panel.width for panel in panels) + gap * (len(panels) - 1), max(panel.height for panel in panels)
    canvas = Image.new("RGB", size, "white")
    left = 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width + gap
    return canvas


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _chart(evaluation: Evaluation) -> bytes:
    """With one variant its IoU by class, with several their mIoU."""
    from matplotlib.figure import Figure  # without pyplot: nothing global, no display

    if len(evaluation.scores) > 1:
        bars = {name: score.miou for name, score in evaluation.scores.items()}
        title = "mIoU (%)"
    else:
        (score,) = evaluation.scores.values()
        bars = dict(sorted(score.per_class.items(), key=lambda item: -item[1]))
        title = f"IoU (%) by class, mean {100 * score.miou:.1f}"
    figure = Figure(figsize=(7, 1 + 0.22 * len(bars)), layout="constrained")
    axes: Axes = figure.subplots()
    values = [100 * value for value in bars.values()]
    axes.barh(list(bars), values, color="#2b6cb0")
    for row, value in enumerate(values):
        axes.text(value + 0.5, row, f"{value:.1f}", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max(10.0, *values) * 1.08)
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
