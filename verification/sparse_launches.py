"""Launches of walks on stencils and graphs, and of their gradients, at the sizes users have: for compiling only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.compilation import distinct
from nerve_kernels._triton.launch import Launch, recording
from nerve_kernels._triton.walk import random_walk, random_walk_backward
from nerve_kernels.grids import stencil_offsets

ALPHA, STEPS = 0.8, 10


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class StencilSize:
    """One walk on a stencil without its centre; ``planar`` values lie plane by plane, as those of pixels do."""

    grid: tuple[int, int] = (480, 640)
    window: tuple[int, int] = (3, 3)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    clamp: bool = True
    labels: int = 21
    planar: bool = True

    def places(self) -> int:
        """K."""
        return len(stencil_offsets(self.window, self.dilations, centre=False))

    def affinity(self, dtype: torch.dtype) -> AffinityArguments:
        """S with weights of ``dtype``."""
        tokens, places = math.prod(self.grid), self.places()
        planes = _empty(1, places, tokens, dtype=dtype).transpose(1, 2)
        values = planes if self.planar else _empty(1, tokens, places, dtype=dtype)
        options = {"window": self.window, "dilations": self.dilations, "centre": False, "clamp": self.clamp}
        return AffinityArguments(values, grid=self.grid, **options)


@dataclass(frozen=True)
class GraphSize:
    """One walk on a graph with so many entries a row, on average."""

    tokens: int = 4096
    entries: int = 400
    labels: int = 21

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens in a column."""
        return self.tokens, 1

    def affinity(self, dtype: torch.dtype) -> AffinityArguments:
        """S with weights of ``dtype``."""
        values = _empty(1, self.tokens * self.entries, dtype=dtype)
        return AffinityArguments(
            values,
            row_pointers=_empty(1, self.tokens + 1, dtype=torch.int64),
            columns=torch.empty(values.shape, dtype=torch.int32, device="meta"),
            grid=self.grid,
        )


SIZES: dict[str, StencilSize | GraphSize] = {
    "stencil": StencilSize(),
    "stencil @ 13 × 13": StencilSize(window=(13, 13), dilations=(1,), clamp=False),
    "graph": GraphSize(),
    "graph @ 12 entries a row, 171 labels": GraphSize(entries=12, labels=171),
}


def sparse_launches(dtype: torch.dtype) -> dict[str, list[Launch]]:
    """Launches by operation, each kernel once; ``@`` marks other sizes than the first."""
    found: dict[str, list[Launch]] = {}
    for name, size in SIZES.items():
        seeds, affinity = _empty(1, math.prod(size.grid), size.labels), size.affinity(dtype)
        with recording() as forward:
            random_walk.run(seeds, affinity, ALPHA, STEPS, True)
        with recording() as adjoint:
            random_walk_backward.run(seeds, seeds, affinity, ALPHA, 2, False)
        first, middle, *others = distinct(forward)
        mark = "," if "@" in name else " @"
        found[f"random_walk, {name}{mark} from seeds"] = [first]
        found[f"random_walk, {name}"] = [middle]
        found[f"random_walk, {name}{mark} to the result"] = others
        found[f"random_walk_backward, {name}{mark} all of it"] = distinct(adjoint)
    return found
