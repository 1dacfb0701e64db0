"""The sizes of the field: what Stable Diffusion's layers, label sets and batches really are."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.operations.registry import Size

LABEL_COUNTS = {"VOC20": 20, "VOC21": 21, "Context60": 60, "ADE150": 150, "Stuff171": 171, "ADE847": 847}


def layer(model: str, side: int, heads: int, head_size: int, *, batch: int = 1) -> Size:
    """One self-attention layer of a diffusion model."""
    name = f"{model}, {side}², {heads} heads, d = {head_size}" + (f", B = {batch}" if batch > 1 else "")
    return Size(name, (side, side), batch=batch, heads=heads, head_size=head_size)


SD15_64 = layer("SD 1.5 at 512²", 64, 8, 40)
SD15_32 = layer("SD 1.5 at 512²", 32, 8, 80)
SD15_16 = layer("SD 1.5 at 512²", 16, 8, 160)
SD21_96 = layer("SD 2.1 at 768²", 96, 5, 64)
SDXL_64 = layer("SDXL at 1024²", 64, 10, 64)
SDXL_32 = layer("SDXL at 1024²", 32, 20, 64)
SD15_32_BATCH_8 = layer("SD 1.5 at 512²", 32, 8, 80, batch=8)
SD15_16_BATCH_32 = layer("SD 1.5 at 512²", 16, 8, 160, batch=32)
# what newer models have: a head of 72, of 128, and twenty heads on a full grid; measured on GPUs
PIXART_64 = layer("PixArt at 1024²", 64, 16, 72)
FLUX_64 = layer("FLUX at 1024²", 64, 24, 128)
TWENTY_HEADS_64 = layer("twenty heads", 64, 20, 64)
THREE_LAYERS_64 = layer("three layers", 64, 24, 40)
THREE_LAYERS_32 = layer("three layers", 32, 24, 80)
SD15_64_88 = Size("SD 1.5 at 512 × 704, 64 × 88, 8 heads, d = 40", (64, 88), heads=8, head_size=40)
LAYERS = (SD15_64, SD15_32, SD15_16, SD21_96, SDXL_64, SDXL_32, SD15_32_BATCH_8, SD15_16_BATCH_32)


def walk(side: int, labels: int, cells: int = 16, *, batch: int = 1, steps: int = 20) -> Size:
    """A walk of all labels on one grid."""
    parts = [f"{side}², C = {labels}, {cells}² cells", f"L = {steps}"] + ([f"B = {batch}"] if batch > 1 else [])
    return Size(", ".join(parts), (side, side), batch=batch, labels=labels, cells=cells, steps=steps)


WALKS = (
    *(walk(64, labels) for labels in LABEL_COUNTS.values()),
    walk(96, 21),
    walk(128, 150, 32),
    walk(256, 19, 32),
    walk(64, 21, batch=8),
    walk(32, 21, batch=32),
)
# The first of each sweep is the smallest; the others differ from it in the one quantity only.
WALK_SWEEPS = {
    "N": tuple(walk(side, 21) for side in (16, 32, 48, 64, 96, 128, 192)),
    "C": tuple(walk(64, labels) for labels in (1, 5, 21, 60, 171, 400, 847)),
    "L": tuple(walk(64, 21, steps=steps) for steps in (1, 5, 10, 20, 40, 80)),
}
LAYER_SWEEPS = {"N": tuple(layer("sweep", side, 8, 40) for side in (16, 24, 32, 48, 64, 80, 96))}

# the graph of LPOSS: 400 nearest neighbours
GRAPHS = tuple(
    Size(f"64², 400 neighbours, C = {labels}", (64, 64), labels=labels, neighbours=400) for labels in (21, 150)
)

# tokens as they leave the walk, and the image's pixels
ORDINARY_IMAGE = Size("64² tokens, 512² pixels, C = 21", (64, 64), pixels=(512, 512))
LARGE_IMAGE = Size("64 × 96 tokens, 4000 × 6000 pixels, C = 200", (64, 96), labels=200, pixels=(4000, 6000))

# an image's own pixels
IMAGE_21 = Size("480 × 640 pixels, C = 21", (480, 640), steps=10)
IMAGE_171 = Size("480 × 640 pixels, C = 171", (480, 640), labels=171, steps=10)
IMAGE_WINDOW_13 = Size("480 × 640 pixels, 13 × 13, C = 21", (480, 640), window=13, steps=10)
QUICK_WINDOW_13 = Size("120 × 160 pixels, 13 × 13, C = 21", (120, 160), window=13, steps=10)

# What the tests run: every code path, in milliseconds. Sides differ, so that a swapped axis shows.
SMALL = Size("small", (8, 12), batch=2, heads=3, head_size=10, labels=3, window=3, cells=4, steps=4, pixels=(60, 90))
SMALL_IMAGE = replace(SMALL, name="small, B = 1", batch=1)
