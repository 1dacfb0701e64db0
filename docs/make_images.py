"""The README's image, made by the code it advertises: ``python docs/make_images.py``."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from nerve_kernels.segmentation import NervePipeline
from nerve_kernels.segmentation.output.files import write_atomic
from nerve_kernels.segmentation.presets import EMBEDDED_FOLDER

IMAGES = Path(__file__).parent / "images"
WIDTH = 960


def main() -> None:
    """Segment the shipped images and stack what comes out."""
    pipe = NervePipeline.from_preset("embedded", device="cpu")
    demo = EMBEDDED_FOLDER / "demo"
    images = json.loads((demo / "labels.json").read_text(encoding="utf-8"))["images"]
    panels = []
    for entry in images:
        panel = pipe(demo / entry["file"], entry["labels"]).overlay(side_by_side=True).convert("RGB")
        panels.append(panel.resize((WIDTH, round(panel.height * WIDTH / panel.width)), Image.Resampling.LANCZOS))
    sheet = Image.new("RGB", (WIDTH, sum(panel.height for panel in panels)), "white")
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    stream = io.BytesIO()
    sheet.quantize(256).save(stream, format="PNG", optimize=True)
    write_atomic(IMAGES / "demo.png", stream.getvalue())


if __name__ == "__main__":
    main()
