"""The page: what happens when its parts are touched. All work is the workbench's."""

from __future__ import annotations

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
from .layout import Layout
from .limits import MAX_FILE_BYTES, RefusedError, read_upload
from .scenes import scenes
from .workbench import Workbench

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


class Page(Layout):
    """The page of one workbench.

    Args:
        workbench: does the work; its models may still be loading.
        config: where the sliders start, and every setting that has no slider.
        known_words: all that the models know, where that is little.
    """

    def __init__(self, workbench: Workbench, config: NerveConfig, known_words: str = "") -> None:
        self.workbench = workbench
        with components.Blocks(title="nerve_kernels", analytics_enabled=False) as self.blocks:
            self.shown = gr.State(Shown())
            super().__init__(config, known_words)
            self._connect()
        self.blocks.queue(max_size=JOBS_WAITING, default_concurrency_limit=1)

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
        settings = [*self.sliders, self.refine]
        self.blocks.load(self.on_load, settings, concurrency_limit=None, **quiet)
        self.drop_zone.upload(self.on_upload, [self.labels, *settings], **working)
        self.gallery.select(self.on_scene, settings, **working)
        for touched in (self.run_button.click, self.labels.submit):
            touched(self.on_run, [self.shown, self.labels, *settings], **working)
        for setting in settings:
            setting.change(self.on_slider, [self.shown, *settings], trigger_mode="always_last", **working)
        self.after.select(self.on_click, self.shown, **working)
        for kind, button in self.downloads.items():
            button.click(
                self.download_maker(kind), self.shown, self.download, api_visibility="private", show_progress="hidden"
            ).success(None, self.download, None, js=snippets.DOWNLOAD_SCRIPT, api_visibility="private")

    def on_load(self, *settings: Any) -> Iterator[Changes]:
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

    def on_upload(self, event: gr.EventData, labels: object, *settings: Any) -> Iterator[Changes]:
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

    def on_scene(self, event: gr.EventData, *settings: Any) -> Iterator[Changes]:
        """One of the scenes was chosen."""
        index = components.sent_with(event, "index")
        if not isinstance(index, int) or index not in range(len(scenes())):
            yield self._refusal(RefusedError(f"scene: expected 0 to {len(scenes()) - 1}, got {str(index)[:20]}."))
            return
        scene = scenes()[index]
        yield from self._choose(scene.image, scene.labels, settings)

    def on_run(self, shown: Shown, labels: str, *settings: Any) -> Changes:
        """The button: new labels for the same image."""
        return self._run(replace(shown, labels=labels), settings)

    def on_slider(self, shown: Shown, *settings: Any) -> Changes:
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

    def _choose(self, image: Image.Image, labels: str, settings: tuple[Any, ...]) -> Iterator[Changes]:
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

    def _run(self, shown: Shown, settings: tuple[Any, ...]) -> Changes:
        start = time.perf_counter()
        try:
            if None in settings:  # a number's field was emptied
                raise RefusedError("Every setting needs a number.")
            alpha, beta, steps, temperature, window, sharpness, refine = settings
            config = self.config.replace(
                alpha=alpha, beta=beta, steps=int(steps), temperature=slider_to_temperature(temperature),
                window=int(window), global_sharpness=sharpness, refine_pixels=None if refine == "none" else refine,
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
