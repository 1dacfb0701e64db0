"""The page: where things stand, and what happens when they are touched. All work is the workbench's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import torch
from PIL import Image

from nerve_kernels.segmentation.config import NerveConfig

from . import components, snippets
from .affinity_rows import draw_row
from .downloads import labels_file, overlay_file, summary_file
from .limits import MAX_FILE_BYTES, MAX_STEPS, MAX_WINDOW, RefusedError, read_upload
from .scenes import scenes
from .workbench import Workbench

INTRODUCTION = """
# Words in, masks out: nothing is trained

Stable Diffusion's attention says **which parts of an image belong together**; CLIP says, badly, **what they might
be**; a random walk lets the first correct the second.
"""
SLIDERS_HELP = (
    "**α** weight of the neighbours in each step (0: CLIP alone) · **β** share of the global affinity · **L** steps of "
    "the walk · **τ** temperature of the head weights · **window** side of the local affinity, in tokens"
)
HEADS_HELP = "Heads whose attention is sharp (low entropy) get a large weight; τ says how large. Weights sum to 100 %."
JOBS_WAITING = 16
# What labels, images and settings can bring about; anything else is a fault of the program.
EXPECTED = (ValueError, TypeError, RuntimeError, MemoryError)

Changes = dict[Any, Any]


@dataclass(frozen=True)
class Shown:
    """What is on a visitor's page at the moment."""

    key: str = ""
    labels: str = ""
    config: NerveConfig | None = None
    point: tuple[float, float] = (0.0, 0.0)  # (x, y) of the clicked point, in the image's pixels

    def settings(self) -> NerveConfig:
        """The settings of the result that is shown.

        Raises:
            RefusedError: there is none yet.
        """
        if self.config is None:
            raise RefusedError("There is no result yet. Press Segment first.")
        return self.config


def slider_to_temperature(value: float) -> float:
    """τ from its slider, which holds log₁₀ τ; two digits, so that a round τ stays one.

    Example:
        >>> slider_to_temperature(-2.3), slider_to_temperature(0)
        (0.005, 1.0)
    """
    return float(f"{10**value:.2g}")


class Page:
    """The page of one workbench.

    Args:
        workbench: does the work; its models may still be loading.
        config: where the sliders start, and every setting that has no slider.
        known_words: all that the models know, where that is little.
    """

    def __init__(self, workbench: Workbench, config: NerveConfig, known_words: str = "") -> None:
        self.workbench = workbench
        self.config = config
        self.known_words = known_words
        with components.Blocks(title="nerve_kernels", analytics_enabled=False) as self.blocks:
            self._lay_out()
            self._connect()
        self.blocks.queue(max_size=JOBS_WAITING, default_concurrency_limit=1)

    # ---- layout --------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        self.shown = gr.State(Shown())
        gr.Markdown(INTRODUCTION)
        self.status = gr.HTML(snippets.status("busy", "Connecting …"), elem_id="status", padding=False)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self._lay_out_inputs()
            with gr.Column(scale=8, min_width=480):
                self._lay_out_results()

    def _lay_out_inputs(self) -> None:
        gr.Markdown("### 1 · An image")
        self.drop_zone = gr.HTML(
            html_template=snippets.DROP_ZONE, js_on_load=snippets.DROP_ZONE_SCRIPT, elem_id="drop-zone", padding=False
        )
        gr.Markdown("or one of these scenes:")
        self.gallery = components.gallery([scene.image for scene in scenes()], "scenes")
        gr.Markdown("### 2 · What to look for")
        self.labels = gr.Textbox(
            lines=2,
            show_label=False,
            container=False,
            elem_id="labels",
            placeholder="background, cat, dog|puppy, house",
        )
        gr.Markdown("Commas between labels, | between synonyms.", elem_classes="nerve-note")
        self.run_button = gr.Button("Segment", variant="primary", interactive=False, elem_id="run")
        if self.known_words:
            with gr.Accordion("The words that these small models know, of drawings only", open=False):
                gr.Markdown(self.known_words, elem_classes="nerve-note")
        gr.Markdown("### How much is each attention head worth?")
        gr.Markdown(HEADS_HELP, elem_classes="nerve-note")
        self.heads = gr.HTML(elem_id="heads", padding=False)

    def _lay_out_results(self) -> None:
        with gr.Row():
            self.before = self._lay_out_image("CLIP alone", "before")
            self.after = self._lay_out_image("after the random walk", "after")
        with gr.Row():
            self.sliders = self._lay_out_sliders()
        gr.Markdown(SLIDERS_HELP, elem_classes="nerve-note")
        with gr.Row():
            self.downloads = {
                "overlay": gr.Button("Download overlay (PNG)", size="sm", interactive=False, elem_id="get-overlay"),
                "labels": gr.Button("Download labels (PNG)", size="sm", interactive=False, elem_id="get-labels"),
                "summary": gr.Button("Download numbers (JSON)", size="sm", interactive=False, elem_id="get-summary"),
            }
        self.download = gr.JSON(visible=False)
        gr.Markdown("### Whom does a token listen to? Click a pixel of the right-hand mask")
        with gr.Row():
            self.rows = [
                self._lay_out_image(title, f"row-{title.split()[0]}")
                for title in ("local S: its window", "global S: all cells", "mixed S: what the walk uses")
            ]
        self.rows_text = gr.Markdown(elem_id="rows-text", elem_classes="nerve-note")

    def _lay_out_image(self, title: str, name: str) -> gr.Image:
        with gr.Column(min_width=180):
            gr.Markdown(f"**{title}**", elem_classes="nerve-title")
            return gr.Image(show_label=False, interactive=False, buttons=[], elem_id=name)

    def _lay_out_sliders(self) -> list[gr.Slider]:
        temperature = round(math.log10(self.config.temperature), 2)
        return [
            gr.Slider(low, high, start, step=step, label=label, elem_id=name, min_width=150, buttons=[])
            for name, low, high, start, step, label in (
                ("alpha", 0, 0.99, self.config.alpha, 0.01, "α"),
                ("beta", 0, 1, self.config.beta, 0.05, "β"),
                ("steps", 0, MAX_STEPS, self.config.steps, 1, "L"),
                ("temperature", -3, 1, temperature, 0.05, "log₁₀ τ"),
                ("window", 1, MAX_WINDOW, self.config.window, 2, "window"),
            )
        ]

    # ---- events --------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        every = [
            self.shown, self.status, self.labels, self.run_button, self.after, self.before, self.heads,
            self.rows_text, *self.rows, *self.downloads.values(),
        ]  # fmt: skip
        quiet: dict[str, Any] = {
            "outputs": every,
            "api_visibility": "private",
            "show_progress": "hidden",
            "postprocess": False,
        }
        working = quiet | {"concurrency_id": "work"}
        settings = self.sliders
        self.blocks.load(self.on_load, settings, concurrency_limit=None, **quiet)
        self.drop_zone.upload(self.on_upload, [self.labels, *settings], **working)
        self.gallery.select(self.on_scene, settings, **working)
        for touched in (self.run_button.click, self.labels.submit):
            touched(self.on_run, [self.shown, self.labels, *settings], **working)
        for slider in self.sliders:
            slider.change(self.on_slider, [self.shown, *settings], trigger_mode="always_last", **working)
        self.after.select(self.on_click, self.shown, **working)
        for kind, button in self.downloads.items():
            button.click(
                self.download_maker(kind), self.shown, self.download, api_visibility="private", show_progress="hidden"
            ).success(None, self.download, None, js=snippets.DOWNLOAD_SCRIPT, api_visibility="private")

    def on_load(self, *settings: float) -> Iterator[Changes]:
        """Wait for the models, saying so, then show the first scene."""
        start = time.monotonic()
        while (state := self.workbench.models_state(timeout=0.5)).state == "loading":
            waited = f"{time.monotonic() - start:.0f} s so far; the page is yours as soon as they are there."
            yield {self.status: snippets.status("busy", "Loading Stable Diffusion and CLIP …", waited)}
        if state.state == "failed":
            yield {self.status: snippets.status("error", "The models could not be loaded.", state.words)}
            return
        yield {self.run_button: gr.Button(interactive=True)}
        yield from self._choose(scenes()[0].image, scenes()[0].labels, settings)

    def on_upload(self, event: gr.EventData, labels: object, *settings: float) -> Iterator[Changes]:
        """A file was dropped: show it, and segment it where there are labels."""
        try:
            size = components.file_size(event)
            if size is not None:
                raise RefusedError(f"This file has {size / 2**20:.0f} MB. Wanted at most {MAX_FILE_BYTES // 2**20} MB.")
            image = read_upload(components.sent_with(event, "image"))
            if not isinstance(labels, str):
                raise RefusedError(f"labels: expected text, got {type(labels).__name__}.")
        except ValueError as error:
            yield self._refusal(error)
            return
        yield from self._choose(image, labels, settings)

    def on_scene(self, event: gr.EventData, *settings: float) -> Iterator[Changes]:
        """One of the scenes was chosen."""
        index = components.sent_with(event, "index")
        if not isinstance(index, int) or index not in range(len(scenes())):
            yield self._refusal(RefusedError(f"scene: expected 0 to {len(scenes()) - 1}, got {str(index)[:20]}."))
            return
        scene = scenes()[index]
        yield from self._choose(scene.image, scene.labels, settings)

    def on_run(self, shown: Shown, labels: str, *settings: float) -> Changes:
        """The button: new labels for the same image."""
        return self._run(replace(shown, labels=labels), settings)

    def on_slider(self, shown: Shown, *settings: float) -> Changes:
        """A slider was let go: the same labels with other settings."""
        return self._run(shown, settings)

    def on_click(self, event: gr.EventData, shown: Shown) -> Changes:
        """A pixel of the mask was clicked: its token's rows of S."""
        try:
            image = self.workbench.opened(shown.key).image
            x, y = components.clicked_pixel(event)
            scale = image.width / self._overlay_width(shown)
            point = ((x + 0.5) * scale, (y + 0.5) * scale)
            if point[1] >= image.height:
                return {self.rows_text: "That was the legend: click on the image above it."}
            shown = replace(shown, point=point)
            return {self.shown: shown, **self._rows(shown)}
        except EXPECTED as error:
            return self._refusal(error)

    def download_maker(self, kind: str) -> Callable[[Shown], dict[str, str]]:
        """What makes one of the files, as a name and a data URL."""

        def make(shown: Shown) -> dict[str, str]:
            try:
                config = shown.settings()
                drawn = self.workbench.segment(shown.key, shown.labels, config).after
            except EXPECTED as error:
                raise components.refused(error) from None
            if kind == "summary":
                return summary_file(drawn.segmentation, config)
            return overlay_file(drawn.overlay) if kind == "overlay" else labels_file(drawn.segmentation)

        return make

    # ---- what they share -----------------------------------------------------------------------------------------

    def _choose(self, image: Image.Image, labels: str, settings: tuple[float, ...]) -> Iterator[Changes]:
        middle = (image.width / 2, image.height / 2)
        shown = Shown(self.workbench.add(image), labels, point=middle)
        cleared = dict.fromkeys((self.before, self.after), image) | dict.fromkeys(self.rows)
        words = "Stable Diffusion and CLIP are looking at the image …"
        start: Changes = {self.shown: shown, self.labels: labels, self.heads: "", self.rows_text: ""}
        if not labels.strip():
            yield start | cleared | {self.status: snippets.status("ready", "Now type what to look for in it.")}
            return
        yield start | cleared | {self.status: snippets.status("busy", words)}
        yield self._run(shown, settings)

    def _run(self, shown: Shown, settings: tuple[float, ...]) -> Changes:
        start = time.perf_counter()
        try:
            if None in settings:  # a number's field was emptied
                raise RefusedError("Every setting needs a number.")
            alpha, beta, steps, temperature, window = settings
            config = self.config.replace(
                alpha=alpha, beta=beta, steps=int(steps), temperature=slider_to_temperature(temperature),
                window=int(window),
            )  # fmt: skip
            shown = replace(shown, config=config)
            outcome = self.workbench.segment(shown.key, shown.labels, config)
            heads = self.workbench.head_weights(shown.key, config)
            rows = self._rows(shown)
        except EXPECTED as error:
            return self._refusal(error)
        words = snippets.phase_times(outcome.seconds, time.perf_counter() - start)
        alive = gr.Button(interactive=True)
        return {
            self.shown: shown,
            self.status: snippets.status("ready", *words),
            self.after: outcome.after.overlay,
            self.before: outcome.before.overlay,
            self.heads: snippets.head_bars(heads),
            **rows,
            **dict.fromkeys(self.downloads.values(), alive),
        }

    def _rows(self, shown: Shown) -> Changes:
        config = shown.settings()
        rows = self.workbench.rows(shown.key, shown.point, config)
        image = self.workbench.opened(shown.key).image
        maps = [draw_row(row, rows.token, image) for row in (rows.local_row, rows.global_row, rows.mixed_row)]
        y, x = rows.token
        height, width = rows.local_row.shape
        text = (
            f"Row of S of the token in row {y + 1}, column {x + 1} of {height} × {width}. "
            f"Its largest weights: local {rows.local_row.max():.3f}, global {rows.global_row.max():.4f}, mixed (β = "
            f"{config.beta:g}) {rows.mixed_row.max():.3f}. Brightness: square root of weight over largest."
        )
        return {self.rows_text: text, **dict(zip(self.rows, maps, strict=True))}

    def _overlay_width(self, shown: Shown) -> int:
        return self.workbench.segment(shown.key, shown.labels, shown.settings()).after.overlay.width

    def _refusal(self, error: Exception) -> Changes:
        words = str(error).strip() or type(error).__name__
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            words = "There is not enough memory for this image with these settings. Try a smaller image."
        return {self.status: snippets.status("error", words)}
