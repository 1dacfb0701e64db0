"""The figures of the method's page, made by the code they explain: ``python docs/make_figures.py``."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

import nerve_kernels as nk
from nerve_kernels.segmentation import ImageFeatures, NervePipeline
from nerve_kernels.segmentation.output.files import write_atomic
from nerve_kernels.segmentation.presets import EMBEDDED_FOLDER
from nerve_kernels.segmentation.seeds import resize_seeds
from nerve_kernels.web.affinity_rows import affinity_row, draw_row

IMAGES = Path(__file__).parent / "images"
IMAGE = EMBEDDED_FOLDER / "demo" / "scene_noto_1.png"
LABELS = ["background", "cat", "mushroom", "house", "balloon"]
TOKEN = (25, 18)  # row and column: on the balloon


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure as a small PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, bbox_inches="tight")
    plt.close(figure)
    small = io.BytesIO()
    Image.open(stream).convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
    write_atomic(IMAGES / name, small.getvalue())


def draw_heads(pipeline: NervePipeline) -> None:
    """Every head of the embedded UNet: its mean entropy, and the weight that τ makes of it."""
    config = pipeline.config.replace(layers=("*",), criterion="entropy")
    builder = pipeline.encode(IMAGE, config=config.replace(window=3)).builder
    assert builder is not None
    entropies, _ = builder.entropies()
    shares = [
        entropy[0].mean(-1) / np.log(layer.k.shape[2]) for layer, entropy in zip(builder.layers, entropies, strict=True)
    ]
    names = [f"{layer.name.split('.transformer')[0]}\n{layer.grid[0]}×{layer.grid[1]}" for layer in builder.layers]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    places = np.arange(sum(len(share) for share in shares), dtype=float)
    places += np.repeat(np.arange(len(shares)), [len(share) for share in shares]) * 0.8
    upper.bar(places, torch.cat(shares).numpy(), color="#4f46e5")
    upper.set_ylabel("mean entropy / log N")
    for offset, temperature in ((-0.3, 0.01), (0.0, 0.1), (0.3, 1.0)):
        weights = torch.cat([weight[0] for weight in builder.weights(config.replace(temperature=temperature))])
        lower.bar(places + offset, weights.numpy(), 0.3, label=f"τ = {temperature}")
    lower.set_ylabel("head weight w")
    lower.legend(frameon=False)
    ends = np.cumsum([len(share) for share in shares])
    middles = [places[end - len(share) : end].mean() for end, share in zip(ends, shares, strict=True)]
    lower.set_xticks(middles, names, rotation=40, ha="right", fontsize=8)
    save(figure, "method_heads.png")


def draw_rows(features: ImageFeatures, local_affinity: nk.LocalAffinity, global_affinity: nk.LowRankAffinity) -> None:
    """One token's row of the local, the global and the mixed affinity."""
    height, width = local_affinity.grid
    rows = [
        affinity_row(part, TOKEN[0] * width + TOKEN[1]).view(height, width)
        for part in (local_affinity, global_affinity)
    ]
    rows.append(0.5 * rows[0] + 0.5 * rows[1])
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4))
    titles = ("local, window 11", "global, 16 × 16 cells", "mixed, β = 0.5")
    for axis, row, title in zip(axes, rows, titles, strict=True):
        axis.imshow(draw_row(row, TOKEN, features.image))
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    save(figure, "method_rows.png")


def draw_walk(seeds: torch.Tensor, affinity: nk.MixedAffinity, alpha: float) -> None:
    """The probability of one label after more and more steps, and in the limit."""
    grid = affinity.local.grid
    index = LABELS.index("balloon")
    steps = (0, 1, 2, 5, 20)
    iterates = [nk.random_walk(seeds, affinity, alpha=alpha, steps=count) for count in steps]
    limit = nk.random_walk_limit(seeds, affinity, alpha=alpha)
    assert isinstance(limit, torch.Tensor)
    figure, axes = plt.subplots(1, len(steps) + 1, figsize=(12, 1.9))
    titles = [f"L = {count}" for count in steps] + ["limit"]
    for axis, iterate, title in zip(axes, [*iterates, limit], titles, strict=True):
        shown = axis.imshow(iterate[:, index].view(grid), vmin=0, vmax=1, cmap="inferno")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, fraction=0.01, label="P(balloon)")
    save(figure, "method_walk.png")


def draw_colours() -> None:
    """The photograph of the page on one's own attention, by running that page's example."""
    page = (IMAGES.parent / "bring_your_own_attention.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "skimage" in block)
    scope: dict[str, Any] = {"torch": torch, "nk": nk}
    exec(example, scope)
    photograph, marks, cat = scope["photograph"], scope["G"].numpy(), scope["cat"].numpy()
    height, width = photograph.shape[:2]
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.6))
    for axis, title in zip(axes, ("the photograph and its marks", "P(cat)", "P(cat) > ½"), strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    axes[0].imshow(photograph)
    for label, colour in enumerate(("#f43f5e", "#22d3ee")):
        rows, columns = np.nonzero(marks[..., label])
        scale = (height / marks.shape[0], width / marks.shape[1])
        axes[0].scatter((columns + 0.5) * scale[1], (rows + 0.5) * scale[0], s=6, color=colour, marker="s")
    axes[1].imshow(cat, vmin=0, vmax=1, cmap="inferno")
    large = np.asarray(Image.fromarray(cat).resize((width, height), Image.Resampling.BILINEAR))
    axes[2].imshow(np.where(large[..., None] > 0.5, photograph, photograph // 5))
    save(figure, "colours.png")


@torch.no_grad()
def main() -> None:
    """Draw all of them on a scene that ships with the package."""
    draw_colours()
    pipeline = NervePipeline.from_preset("embedded", device="cpu")
    config = pipeline.config.replace(beta=0.5)
    features = pipeline.encode(IMAGE, config=config)
    assert features.builder is not None
    local_affinity, global_affinity = features.builder.local_affinity(config), features.builder.global_affinity(config)
    alone = pipeline.segment(features, LABELS, config=config.replace(walk=False)).token_probabilities
    seeds = resize_seeds(alone.flatten(1).T, (alone.shape[1], alone.shape[2]), local_affinity.grid)
    draw_heads(pipeline)
    draw_rows(features, local_affinity, global_affinity)
    draw_walk(seeds, nk.mix(global_affinity, local_affinity, beta=0.5), config.alpha)


if __name__ == "__main__":
    main()
