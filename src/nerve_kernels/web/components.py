"""Gradio's parts as the page uses them: images never become files, and a senseless request is refused in a line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from .downloads import png_url
from .limits import RefusedError

MAX_REFUSAL_LENGTH = 400
MAX_PIXEL = 10**6
log = logging.getLogger(__name__)


class Blocks(gr.Blocks):
    """A page whose inputs are numbers and texts, and whose images travel inside its answers.

    Gradio would fetch an input that looks like a file's address, and answer one that does not fit with a traceback in
    the server's log. An image it would write to the temporary folder, readable for everyone, and send the file's
    address. Handlers therefore return images, and their events say ``postprocess=False``.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> list[Any]:
        """The inputs of an event as its handler takes them; whatever else a script sends is refused."""
        try:
            if not all(value is None or isinstance(value, (str, int, float)) for value in inputs):
                raise RefusedError("inputs: expected numbers and texts")
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except Exception as error:
            raise refused(error) from None

    async def postprocess_data(self, block_fn: Any, predictions: Any, *arguments: Any, **options: Any) -> list[Any]:
        """What a handler returned as the browser takes it."""
        if isinstance(predictions, dict):
            predictions = await asyncio.to_thread(_with_data_urls, predictions)
        return await super().postprocess_data(block_fn, predictions, *arguments, **options)


def refused(error: Exception) -> gr.Error:
    """A request's refusal: one line for the log, and the same for whoever sent it."""
    words = " ".join(str(error).split())[:MAX_REFUSAL_LENGTH] or type(error).__name__
    log.warning("refused a request: %s", words)
    return gr.Error(words, print_exception=False)


def sent_with(event: gr.EventData, name: str) -> Any:
    """What the browser sent along with an event; None where a script did not."""
    return event._data.get(name) if isinstance(event._data, dict) else None


def clicked_pixel(event: gr.EventData) -> tuple[float, float]:
    """Where an image was clicked, as (x, y) in the pixels of what is shown.

    Raises:
        RefusedError: a script sent something else.
    """
    index = sent_with(event, "index")
    if not (isinstance(index, list) and len(index) == 2 and all(_is_number_below(MAX_PIXEL, at) for at in index)):
        raise RefusedError("index: expected the x and y of a pixel.")
    return index[0], index[1]


def file_size(event: gr.EventData) -> float | None:
    """The size that the browser says of a file which it did not send."""
    size = sent_with(event, "too_large")
    return size if _is_number_below(2**60, size) else None


def gallery(images: Sequence[Image.Image], name: str) -> gr.Gallery:
    """Small images to choose from, which travel inside the page."""
    made = gr.Gallery(
        columns=3, height="auto", object_fit="cover", allow_preview=False, interactive=False, buttons=[],
        show_label=False, elem_id=name,
    )  # fmt: skip
    made.value = [{"image": _as_data_url(shown), "caption": None} for shown in images]
    return made


def _is_number_below(most: int, value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < most


def _with_data_urls(changes: dict[Any, Any]) -> dict[Any, Any]:
    return {place: _as_data_url(value) if isinstance(value, Image.Image) else value for place, value in changes.items()}


def _as_data_url(image: Image.Image) -> dict[str, Any]:
    return dict(ImageData(url=png_url(image)).model_dump())
