"""mIoU of the embedded models: hyperparameters chosen on the validation scenes, the test scenes scored once.

``python -m training.quality.search`` (``make quality``) writes to ``benchmarks/results/``:

- ``embedded_quality.csv``: method, the settings selected on validation, mIoU on all 200 test scenes, each image
  asked for its own words (what a person types);
- ``embedded_quality_by_style.csv``: the same for the seen and the unseen style, and for a second vocabulary: every
  image asked for all words of the world (what the field's protocol asks), with settings selected for that;
- ``embedded_quality.json``: every selected config in full, validation scores, machine, versions, date.

The search changes one setting after the other in a fixed order, from the first option of each, and keeps what is
better; it goes over them twice. CLIP's settings are chosen without a walk, then the walk's, then Stable Diffusion's,
then each method's own. Ties keep the earlier option. Nothing but validation scenes is looked at until it is over.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from benchmarks.machine import description
from benchmarks.tables import write_rows
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from training.paths import REPOSITORY

from nerve_kernels.evaluation import EmbeddedScene, EmbeddedScenes, MeanIoU
from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.config import CLIP_FIELDS, DIFFUSION_FIELDS
from nerve_kernels.segmentation.output.files import write_atomic
from nerve_kernels.segmentation.pipeline import ImageFeatures
from nerve_kernels.segmentation.text_image.prompts import BACKGROUND

RESULTS = REPOSITORY / "benchmarks" / "results"

# What is chosen together, and the options, in the order of the search.
Search = Sequence[tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]]
SEEDS = (("seed_mode", "seed_scale"), [(m, s) for m in ("cross_attention", "cosine") for s in (None, 30.0, 10.0)])
READINGS = (("value", False, False), ("value", True, True), ("key_key", False, False), ("key_key", True, True))
CLIP_SEARCH: Search = (
    # together: with every word of the world, a reading that is good with one kind of seeds is useless with the other
    (
        ("dense_features", "clip_residual", "clip_feed_forward", "seed_mode", "seed_scale"),
        [(*reading, *seeds) for reading in READINGS for seeds in SEEDS[1]],
    ),
    # None: the image at once; else crops of so many pixels and the step between them
    (("clip_window", "clip_stride"), [(None, 112), (64, 32), (48, 24), (40, 16), (32, 16)]),
    SEEDS,
)
LAYERS = (("down_blocks.0.*",), ("latent/1",), ("up_blocks.2.*",), ("latent/1", "latent/2"))
DIFFUSION_SEARCH: Search = (
    # together, because how far a layer may be trusted decides how much of its image-wide part helps
    (("layers", "beta"), [(layers, beta) for layers in LAYERS for beta in (0.1, 0.0, 0.25)]),
    (("timesteps",), [((20,),), ((1,),), ((50,),), ((100,),), ((20, 100),)]),
    (("diffusion_size",), [(128,), (160,), (192,)]),
)
WALK_SEARCH: Search = (
    SEEDS,
    (("alpha", "steps"), [(0.8, 20), (0.6, 12), (0.7, 15), (0.85, 30), (0.9, 40), (0.95, 60)]),
    (("temperature",), [(0.02,), (0.005,), (0.05,), (0.2,)]),
    (("beta",), [(0.1,), (0.0,), (0.25,), (0.5,)]),
    (("global_sharpness",), [(1.0,), (2.0,), (4.0,)]),
    (("window",), [(7,), (5,), (11,), (15,)]),
)
MAX_PASSES = 2


def start() -> NerveConfig:
    """Where every search starts, whatever the preset is: the size of the embedded CLIP and the first options."""
    config = NerveConfig(clip_size=128, templates="photo")
    for names, options in reversed((*CLIP_SEARCH, *DIFFUSION_SEARCH, *WALK_SEARCH)):
        config = config.replace(**dict(zip(names, options[0], strict=True)))
    return config


@dataclass(frozen=True)
class Method:
    """A row of the table: what is fixed by its definition; the rest is searched."""

    name: str
    fixed: dict[str, Any]

    def search(self) -> Search:
        """The settings that are open for this method."""
        if not self.fixed.get("walk", True):
            return []
        idle = {"temperature"} if self.fixed["criterion"] == "uniform" else set()
        # without a local part there is no window, without a global one nothing to sharpen
        idle |= {1.0: {"window"}, 0.0: {"global_sharpness"}}.get(self.fixed.get("beta"), set())
        return [(names, options) for names, options in WALK_SEARCH if not {*idle, *self.fixed} & {*names}]


VOCABULARIES = {"own words": False, "all words": True}
"""What each image is asked for; the value says whether that is every word."""

METHODS = (
    Method("clip", {"walk": False}),
    Method("clip+walk uniform", {"criterion": "uniform"}),
    Method("clip+walk entropy", {"criterion": "entropy"}),
    Method("clip+walk information", {"criterion": "information"}),
    Method("clip+walk cell information", {"criterion": "cell_information"}),
    Method("local only", {"criterion": "entropy", "beta": 0.0}),
    Method("global only", {"criterion": "entropy", "beta": 1.0}),
)


class Split:
    """Scenes of one split with their features, encoded once for each choice of what goes into the models."""

    def __init__(self, pipeline: NervePipeline, scenes: Sequence[EmbeddedScene], progress: Progress) -> None:
        self.pipeline, self.scenes, self.progress = pipeline, scenes, progress
        self.classes = EmbeddedScenes("validation").classes
        self._key: tuple[Any, ...] = ()
        self._scores: dict[tuple[str, bool, str | None], float] = {}
        self._features: list[ImageFeatures] = []

    def features(self, config: NerveConfig) -> list[ImageFeatures]:
        """Features of every scene under ``config``; only the last choice is kept in memory."""
        names = (*CLIP_FIELDS, *DIFFUSION_FIELDS, "walk")
        key = tuple(getattr(config, name) for name in names)
        if key != self._key:
            task = self.progress.add_task(f"encoding {len(self.scenes)} scenes", total=len(self.scenes))
            self._features = []
            for scene in self.scenes:
                self._features.append(self.pipeline.encode(scene.image, config=config))
                self.progress.advance(task)
            self.progress.remove_task(task)
            self._key = key
        # affinities are cached in the features by config: start from none, or they would pile up
        return [replace(features, _affinities={}) for features in self._features]

    def score(self, config: NerveConfig, *, every_word: bool = False, style: str | None = None) -> float:
        """mIoU over all classes, from one confusion matrix over the scenes (of one style); each is scored once."""
        key = config.to_json(), every_word, style
        if key not in self._scores:
            self._scores[key] = self._score(config, every_word=every_word, style=style)
        return self._scores[key]

    def _score(self, config: NerveConfig, *, every_word: bool, style: str | None) -> float:
        metric = MeanIoU(self.classes)
        for scene, features in zip(self.scenes, self.features(config), strict=True):
            if style is None or scene.style == style:
                words = self.classes[1:] if every_word else scene.names
                result = self.pipeline.segment(features, [BACKGROUND, *words], config=config)
                index = np.array([self.classes.index(name) for name in result.labels])
                metric.update(index[result.label_map.numpy()], scene.mask)
        return metric.compute().miou


def choose(
    split: Split,
    start: NerveConfig,
    search: Search,
    report: Callable[[str], None],
    *,
    every_word: bool,
) -> tuple[NerveConfig, dict[str, Any], float]:
    """Coordinate ascent over the settings: (config, what was selected, validation mIoU)."""
    config, best = start, split.score(start, every_word=every_word)
    for _ in range(MAX_PASSES):
        before = best
        for names, options in search:
            for option in options:
                candidate = config.replace(**dict(zip(names, option, strict=True)))
                score = split.score(candidate, every_word=every_word)
                report(f"  {dict(zip(names, option, strict=True))}: {score:.4f}")
                if score > best:
                    config, best = candidate, score
        if best == before:
            break
    return config, {name: getattr(config, name) for names, _ in search for name in names}, best


def select(split: Split, report: Callable[[str], None], *, every_word: bool) -> dict[str, dict[str, Any]]:
    """Each method's selection, validation mIoU and config, for one vocabulary."""

    def chosen(config: NerveConfig, search: Search) -> tuple[NerveConfig, dict[str, Any], float]:
        return choose(split, config, search, report, every_word=every_word)

    clip, clip_choice, _ = chosen(start().replace(walk=False), CLIP_SEARCH)
    # the encoder is judged by a walk that suits it
    with_walk, _, _ = chosen(clip.replace(walk=True, criterion="entropy"), WALK_SEARCH)
    with_walk, diffusion_choice, _ = chosen(with_walk, DIFFUSION_SEARCH)
    details = {}
    for method in METHODS:
        report(method.name)
        # what CLIP is alone, it is with the seeds that suit it alone
        before = with_walk if method.fixed.get("walk", True) else clip
        config, selected, score = chosen(before.replace(**method.fixed), method.search())
        shared = clip_choice if method.name == "clip" else {**clip_choice, **diffusion_choice}
        details[method.name] = {
            "selected_on_validation": {k: v for k, v in {**shared, **selected}.items() if k not in method.fixed},
            "validation_miou": round(score, 4),
            "config": json.loads(config.to_json()),
        }
    return details


def describe(selected: dict[str, Any]) -> str:
    """Settings in one cell of a table."""
    return "; ".join(f"{name}={'+'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in selected.items())


def evaluate(console: Console, validation_scenes: int | None, test_scenes: int | None) -> list[dict[str, Any]]:
    """Choose on validation, score on test, write the three files; returns the rows of the first."""
    pipeline = NervePipeline.from_preset("embedded", device="cpu")
    by_style: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as progress:
        validation = Split(pipeline, list(EmbeddedScenes("validation"))[:validation_scenes], progress)
        report = progress.console.print
        details = {
            vocabulary: select(validation, report, every_word=every_word)
            for vocabulary, every_word in VOCABULARIES.items()
        }
        # only now the test scenes: once for each method and vocabulary
        test = Split(pipeline, _spread(list(EmbeddedScenes("test")), test_scenes), progress)
        for vocabulary, every_word in VOCABULARIES.items():
            configs = {
                method: NerveConfig.from_json(json.dumps(detail["config"]))
                for method, detail in details[vocabulary].items()
            }
            # what the walk adds, it adds to these
            configs["clip, seeds of the walk"] = configs["clip+walk entropy"].replace(walk=False)
            for method, config in configs.items():
                for shown, style in (("seen", "noto"), ("unseen", "fluent"), ("both", None)):
                    miou = round(test.score(config, every_word=every_word, style=style), 4)
                    by_style.append({"method": method, "vocabulary": vocabulary, "style": shown, "miou": miou})
                report(f"{method}, {vocabulary}: {miou:.4f} on test")
    rows = [
        {
            "method": row["method"],
            "selected_on_validation": describe(details["own words"][row["method"]]["selected_on_validation"]),
            "miou": row["miou"],
        }
        for row in by_style
        if (row["vocabulary"], row["style"]) == ("own words", "both") and row["method"] in details["own words"]
    ]
    write_rows(RESULTS / "embedded_quality.csv", rows)
    write_rows(RESULTS / "embedded_quality_by_style.csv", by_style)
    summary = json.dumps({"made_with": description("cpu"), "vocabularies": details}, indent=2) + "\n"
    write_atomic(RESULTS / "embedded_quality.json", summary.encode())
    return rows


def _spread(scenes: list[EmbeddedScene], count: int | None) -> list[EmbeddedScene]:
    """``count`` scenes from all over the list, so that both styles are among them."""
    return scenes if count is None else scenes[:: max(1, len(scenes) // count)][:count]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--validation-scenes", type=int, help="use the first so many (for a quick try)")
    parser.add_argument("--test-scenes", type=int, help="use so many, of both styles (for a quick try)")
    arguments = parser.parse_args()
    console = Console()
    rows = evaluate(console, arguments.validation_scenes, arguments.test_scenes)
    table = Table("method", "mIoU (test)", "selected on validation")
    for row in rows:
        table.add_row(row["method"], f"{row['miou']:.3f}", row["selected_on_validation"])
    console.print(table)


if __name__ == "__main__":
    main()
