"""Which tokens of a layer are the picture's, and on what grid they lie.

Models are known by the names of their classes, so that none of their libraries is imported.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.checks import refusal
from nerve_kernels.grids import Grid

TEXT_FIRST = ("FluxTransformer2DModel", "Flux2Transformer2DModel")
"""Whose text stands before the picture, in one sequence."""

PICTURE_FIRST = ("SD3Transformer2DModel",)
"""Whose text stands after it."""

BEFORE_THE_PICTURE = {
    "CLIPVision": 1,
    "Dinov2": 1,
    "DINOv3ViT": 1,
    "ViT": 1,
    "DeiT": 2,
    "Beit": 1,
    "Data2VecVision": 1,
    "Siglip": 0,
}
"""Class tokens of vision transformers by the beginning of their classes' names; registers come on top."""

NO_PICTURE = re.compile(r"(^|\.)(text_model|text_encoder\w*|text_transformer|language_model)(\.|$)")
"""Modules that read words."""

WINDOWED = re.compile(r"Swin|Window|MaxVit|Hiera")
"""Classes whose attention stays within windows of the picture: no row of S."""


@dataclass(frozen=True)
class Picture:
    """What one pass of a model was given to see."""

    size: Grid | None = None  # rows and columns of what it is cut into tokens of: pixels, a latent, or tokens
    tokens: int | None = None  # where that is known
    batch: tuple[int, ...] = ()  # what it may be: models take (B, N, d) or (N, B, d)

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Grid | None) -> Picture:
        """From the arguments of a model's call: the first (B, channels, H, W), or positions of packed tokens."""
        values = [*args, *kwargs.values()]
        tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        image = next((value for value in tensors if value.dim() == 4), None)
        batch = tuple(tensors[0].shape[:2]) if tensors and tensors[0].dim() > 2 else ()
        if image is not None:
            batch = (image.shape[0],)
        if grid is not None:
            return cls(grid, None, batch)
        if image is not None:
            return cls((image.shape[2], image.shape[3]), None, batch)
        positions = kwargs.get("img_ids")
        if isinstance(positions, Tensor) and positions.dim() >= 2:
            last = positions.reshape(-1, positions.shape[-1])
            sides = [int(last[:, place].max()) + 1 for place in (-2, -1)] if last.shape[-1] == 3 else None
            if last.shape[-1] == 4:  # (time, row, column, part)
                sides = [int(last[:, place].max()) + 1 for place in (1, 2)]
            if sides is not None and sides[0] * sides[1] == last.shape[0]:
                return cls((sides[0], sides[1]), last.shape[0], batch)
        return cls(None, None, batch)

    def grid_of(self, tokens: int) -> Grid | None:
        """(H, W) with that many tokens and the picture's aspect, or None."""
        if self.size is None or tokens < 1:
            return None
        height = round(math.sqrt(tokens * self.size[0] / self.size[1]))
        for rows in (height, height - 1, height + 1):
            if rows >= 1 and tokens % rows == 0:
                columns = tokens // rows
                # both sides by the same factor, but for what rounding to whole tokens takes
                if abs(self.size[0] * columns - self.size[1] * rows) < max(self.size):
                    return rows, columns
        return None


def before_the_picture(model: Any) -> int | None:
    """Tokens that a vision transformer puts before the picture's, or None where its class is not known."""
    for name, count in BEFORE_THE_PICTURE.items():
        if type(model).__name__.startswith(name):
            return count + int(getattr(getattr(model, "config", None), "num_register_tokens", None) or 0)
    return None


def picture_span(model: torch.nn.Module, name: str, tokens: int, picture: Picture) -> tuple[int, Grid]:
    """(first token of the picture, its grid) in a layer of so many tokens.

    Raises:
        ValueError: it cannot be known; with what to give.
    """
    kind = type(model).__name__
    if kind in TEXT_FIRST or kind in PICTURE_FIRST:
        grid = picture.size if picture.tokens is not None else _grid_of_patches(model, picture)
        if grid is not None and grid[0] * grid[1] <= tokens:
            return (tokens - grid[0] * grid[1] if kind in TEXT_FIRST else 0), grid
        raise ValueError(refusal("grid", f"(H, W) of the picture's tokens in {name}", grid, "give grid=(H, W)"))
    before = before_the_picture(_vision_part(model, name))
    if before is not None:
        grid = picture.grid_of(tokens - before)
        if grid is not None:
            return before, grid
    elif (grid := picture.grid_of(tokens)) is not None:
        return 0, grid
    size = "unknown size" if picture.size is None else f"{picture.size[0]} × {picture.size[1]}"
    do = "give grid=(H, W) of the picture's tokens, and tokens=(first, end) where others are beside them"
    raise ValueError(
        refusal(name, "tokens that are the picture's grid", f"{tokens} for a picture of {size} in a {kind}", do)
    )


def _grid_of_patches(model: Any, picture: Picture) -> Grid | None:
    """Of a diffusion transformer that cuts a latent into patches, or of tokens that were said to be the grid."""
    if picture.size is None:
        return None
    patch = int(getattr(getattr(model, "config", None), "patch_size", 1) or 1)
    return picture.size[0] // patch, picture.size[1] // patch


def _vision_part(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The innermost model around a layer whose class is known: a vision tower within a larger model."""
    parts, found = name.split("."), model
    module = model
    for part in parts:
        module = module.get_submodule(part) if part else module
        if type(module).__name__.endswith(("Model", "Transformer")) and before_the_picture(module) is not None:
            found = module
    return found
