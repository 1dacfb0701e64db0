"""Where things stand on the page."""

from __future__ import annotations

import math

import gradio as gr

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.config_fields import PIXEL_REFINERS

from . import components, snippets
from .limits import MAX_SHARPNESS, MAX_STEPS, MAX_WINDOW
from .scenes import scenes

INTRODUCTION = """
# Words in, masks out: nothing is trained

Stable Diffusion's attention says **which parts of an image belong together**; CLIP says, badly, **what they might
be**; a random walk lets the first correct the second.
"""
SLIDERS_HELP = (
    "**α** weight of the neighbours in each step (0: CLIP alone) · **β** share of the global affinity · **L** steps of "
    "the walk · **τ** temperature of the head weights · **window** side of the local affinity, in tokens · **γ** "
    "sharpness of the global affinity · **edges** where masks end: between tokens, or, by walk, pamr or lposs+ over "
    "similar colours, at edges of the image"
)
HEADS_HELP = "Heads whose attention is sharp (low entropy) get a large weight; τ says how large. Weights sum to 100 %."


class Layout:
    """The page's parts, made inside the ``Blocks`` that is open.

    Args:
        config: where the sliders start.
        known_words: all that the models know, where that is little.
    """

    def __init__(self, config: NerveConfig, known_words: str) -> None:
        self.config = config
        self.known_words = known_words
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
        self.refine = gr.Radio(
            [("tokens", "none"), *((name, name) for name in PIXEL_REFINERS)],
            value=self.config.refine_pixels or "none",
            label="edges",
            elem_id="refine",
        )
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
                ("sharpness", 1, MAX_SHARPNESS, self.config.global_sharpness, 0.5, "γ"),
            )
        ]
