"""What holds the embedded models back, on the validation scenes: ``python -m training.quality.limits``.

Three kinds of rows go to ``benchmarks/results/embedded_limits.csv``: one setting of the preset changed at a time, which
shows what a better choice of it could give; one part replaced by the truth, which shows what a perfect part could give;
and how much of all attention the most attended tokens take, sinks, which belong to no object. Every image is asked
for its own words. About a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.machine import description
from benchmarks.tables import write_rows
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from training.quality.search import RESULTS, Split

import nerve_kernels as nk
from nerve_kernels.evaluation import EmbeddedScene, EmbeddedScenes, MeanIoU
from nerve_kernels.segmentation import ImageFeatures, NerveConfig, NervePipeline
from nerve_kernels.segmentation.output.upsampling import best_labels, upsample
from nerve_kernels.segmentation.text_image.prompts import BACKGROUND

VARIED: Sequence[tuple[str, Sequence[dict[str, Any]]]] = (
    ("CLIP: image size", [{"clip_size": size} for size in (96, 160, 192)]),
    ("CLIP: crops", [{"clip_window": a, "clip_stride": b} for a, b in ((32, 16), (40, 16), (48, 24), (96, 48))]),
    ("CLIP: the image at once", [{"clip_window": None, "clip_size": size} for size in (128, 192)]),
    (
        "CLIP: last block",
        [
            {"dense_features": "key_key"},
            {"clip_residual": True, "clip_feed_forward": True},
        ],
    ),
    ("CLIP: prompts", [{"templates": name} for name in ("name", "short", "imagenet80")]),
    ("seeds", [{"seed_mode": "cosine"}, {"seed_scale": None}, {"seed_scale": 30.0}]),
    ("UNet: timestep", [{"timesteps": steps} for steps in ((20,), (50,), (100,), (200,), (20, 100))]),
    (
        "UNet: layers",
        [{"layers": (name,)} for name in ("down_blocks.1.*", "up_blocks.1.*", "up_blocks.2.*", "latent/1")],
    ),
    ("UNet: image size", [{"diffusion_size": size} for size in (128, 160, 256)]),
    ("head weights", [{"temperature": t} for t in (0.005, 0.02, 0.2)] + [{"criterion": "uniform"}, {"keep": 1}]),
    ("window", [{"window": side} for side in (5, 7, 15, 21)]),
    ("global share", [{"beta": beta} for beta in (0.0, 0.25, 0.5, 1.0)]),
    ("walk", [{"alpha": a, "steps": s} for a, s in ((0.6, 12), (0.8, 20), (0.95, 60))] + [{"walk": False}]),
)


def describe(change: dict[str, Any]) -> str:
    """A change as one cell."""
    return ", ".join(f"{name} = {value}" for name, value in change.items())


def true_seeds(scene: EmbeddedScene, classes: Sequence[str], grid: tuple[int, int]) -> Tensor:
    """(H·W, labels): which share of a token each label covers; labels are the background and the scene's words."""
    labels = torch.tensor([0] + [classes.index(name) for name in scene.names])
    planes = (torch.from_numpy(np.array(scene.mask)).long()[None] == labels[:, None, None]).float()
    return torch.nn.functional.adaptive_avg_pool2d(planes[None], grid)[0].flatten(1).T.contiguous()


def perfect_grouping(scene: EmbeddedScene, planes: Tensor) -> Tensor:
    """(H, W) labels where every true region gets the label that its mean seed prefers."""
    mask = torch.from_numpy(np.array(scene.mask)).long()
    pixels = upsample(planes, (mask.shape[0], mask.shape[1]))
    found = torch.zeros_like(mask)
    for region in mask.unique():
        inside = mask == region
        found[inside] = pixels[:, inside].mean(1).argmax()
    return found


def miou(split: Split, label_map: Callable[[EmbeddedScene, ImageFeatures], Tensor], config: NerveConfig) -> float:
    """Of label maps whose index 0 is the background and i the scene's i-th word."""
    metric = MeanIoU(split.classes)
    for scene, features in zip(split.scenes, split.features(config), strict=True):
        index = np.array([0] + [split.classes.index(name) for name in scene.names])
        metric.update(index[label_map(scene, features).numpy()], scene.mask)
    return metric.compute().miou


def oracles(split: Split, config: NerveConfig) -> Iterator[tuple[str, float]]:
    """mIoU with one part replaced by the truth."""
    size = (split.scenes[0].image.height, split.scenes[0].image.width)

    def from_truth(scene: EmbeddedScene, features: ImageFeatures, *, walk: bool) -> Tensor:
        assert features.grid is not None
        seeds = true_seeds(scene, split.classes, features.grid)
        if walk:
            seeds = nk.random_walk(seeds, features.affinity(config), alpha=config.alpha, steps=config.steps)
        return best_labels(seeds.T.reshape(-1, *features.grid), size)

    def grouped(config: NerveConfig) -> Callable[[EmbeddedScene, ImageFeatures], Tensor]:
        def label_map(scene: EmbeddedScene, features: ImageFeatures) -> Tensor:
            result = split.pipeline.segment(features, [BACKGROUND, *scene.names], config=config)
            return perfect_grouping(scene, result.token_probabilities)

        return label_map

    yield "true seeds on the walk's tokens, no walk", miou(split, lambda s, f: from_truth(s, f, walk=False), config)
    yield "true seeds, our affinity and walk", miou(split, lambda s, f: from_truth(s, f, walk=True), config)
    for mode in ("cross_attention", "cosine"):
        alone = config.replace(walk=False, seed_mode=mode)
        yield f"CLIP's seeds ({mode}), perfect grouping", miou(split, grouped(alone), alone)
    yield "our walk, then perfect grouping", miou(split, grouped(config), config)


def sinks(split: Split, config: NerveConfig) -> Iterator[tuple[str, float]]:
    """The share of all attention that the 1 % most attended tokens of an image take, by layer, mean over images."""
    every_layer = config.replace(layers=("down_blocks.0.*", "down_blocks.1.*", "mid_block.*", "up_blocks.*"))
    shares: dict[str, list[float]] = {}
    for scene in split.scenes:
        (layers,) = split.pipeline.attention([scene.image], every_layer)
        for layer in layers:
            received = nk.attention_marginal(layer.q, layer.k).mean((0, 1))
            best = received.topk(max(1, round(0.01 * received.numel()))).values
            shares.setdefault(layer.name, []).append(float(best.sum() / received.sum()))
    for name, found in shares.items():
        yield f"1 % of the tokens of {name.split('.transformer')[0]}", sum(found) / len(found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, help="use the first so many (for a quick try)")
    parser.add_argument("--out", type=Path, default=RESULTS / "embedded_limits.csv")
    options = parser.parse_args()
    pipeline, made = NervePipeline.from_preset("embedded", device="cpu"), description("cpu")
    config, rows = pipeline.config, list[dict[str, Any]]()
    with Progress(console=Console(), transient=True) as progress:
        split = Split(pipeline, list(EmbeddedScenes("validation"))[: options.scenes], progress)

        def add(part: str, what: str, value: float) -> None:
            rows.append({"part": part, "what": what, "value": f"{value:.4f}", **made})
            progress.console.print(f"{part:<36}{what:<60}{value:.4f}", soft_wrap=True)

        add("the preset", "as it is", split.score(config))
        for what, value in oracles(split, config):
            add("mIoU with the truth for a part", what, value)
        for part, changes in VARIED:
            for change in changes:
                add(part, describe(change), split.score(config.replace(**change)))
        for what, value in sinks(split, config):
            add("share of all attention", what, value)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
