"""Walks on stencils and graphs, as ``walk_problems`` has those on windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tests.triton.walk_problems import BETA, Grid, Problem
from torch import Tensor

from nerve_kernels import reference
from nerve_kernels._arguments import UNUSED_PAIR, AffinityArguments
from nerve_kernels.grids import stencil_neighbours, stencil_offsets

SPARSE_KINDS = ("stencil", "clamped", "graph", "mixed stencil", "mixed clamped", "mixed graph", "mixed graph factors")
MOST_ENTRIES = 20


@dataclass(frozen=True)
class SparseProblem(Problem):
    """One walk; by default several tiles or blocks of rows, with remainders, and offsets past the border."""

    kind: str = "stencil"
    grid: Grid = (5, 9)
    window: Grid = (3, 3)
    cells: Grid = (3, 5)
    dilations: tuple[int, ...] = (1, 3)
    centre: bool = False
    planar: bool = True
    index_dtype: torch.dtype = torch.int32

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Values (NaN off the grid; of a graph, what columns beyond it hold), u and v."""
        u = v = None
        if self.kind.startswith("mixed"):
            window = Problem(
                "factors" if self.kind.endswith("factors") else "cells",
                self.grid,
                cells=self.cells,
                affinity_batch=self.affinity_batch,
                dtype=self.dtype,
            )
            _, u, v, _ = window.parts()
        generator = torch.Generator().manual_seed(8)
        if "graph" in self.kind:
            values = torch.rand(self.affinity_batch, self.graph()[1].shape[1], generator=generator) / 5
            return values.to(self.dtype), u, v, None
        offsets = stencil_offsets(self.window, self.dilations, self.centre)
        inside = stencil_neighbours(self.grid, offsets, "clamped" in self.kind)[1]
        values = torch.rand(self.affinity_batch, math.prod(self.grid), len(offsets), generator=generator) * inside
        values = (values / values.sum(-1, keepdim=True)).nan_to_num()
        values = torch.where(inside, values, math.nan).to(self.dtype)
        return (values.transpose(1, 2).contiguous().transpose(1, 2) if self.planar else values), u, v, None

    def graph(self) -> tuple[Tensor, Tensor]:
        """Row pointers and columns: empty rows, long ones, columns beyond the graph, and entries that no row has."""
        generator = torch.Generator().manual_seed(9)
        tokens, batch = math.prod(self.grid), self.affinity_batch
        counts = torch.randint(0, MOST_ENTRIES, (batch, tokens), generator=generator)
        counts[:, ::5] = 0
        pointers = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), counts.cumsum(1)], 1)
        columns = torch.randint(0, tokens, (batch, int(pointers[:, -1].max()) + 3), generator=generator)
        columns[:, 3::11], columns[:, 4::13] = -1, tokens
        return pointers.to(self.index_dtype), columns.to(self.index_dtype)

    def arguments(self) -> tuple[Any, ...]:
        """As ``run`` of the walk takes them."""
        values, u, v, _ = self.parts()
        cells = self.cells if u is not None and v is None else UNUSED_PAIR
        affinity = AffinityArguments(values, u, v, grid=self.grid, cells=cells, beta=BETA)
        if "graph" in self.kind:
            pointers, columns = self.graph()
            affinity = affinity._replace(row_pointers=pointers, columns=columns)
        else:
            affinity = affinity._replace(
                window=self.window, dilations=self.dilations, centre=self.centre, clamp="clamped" in self.kind
            )
        return self.seeds(), affinity, self.alpha, self.steps, self.normalize

    def affinity(self) -> Tensor:
        """S in float64."""
        values, u, v, _ = self.parts()
        assert values is not None
        tokens = math.prod(self.grid)
        if "graph" in self.kind:
            pointers, columns = self.graph()
            kept = torch.where((columns >= 0) & (columns < tokens), values, 0)
            images = zip(pointers, columns.clamp(0, tokens - 1), kept, strict=True)
            local = torch.stack([reference.graph_to_dense(*image) for image in images])
        else:
            offsets = stencil_offsets(self.window, self.dilations, self.centre)
            local = reference.stencil_to_dense(values, grid=self.grid, offsets=offsets, clamp="clamped" in self.kind)
        if u is not None:
            cells = self.cells if v is None else None
            local = reference.mix(reference.low_rank_to_dense(u, v, grid=self.grid, cells=cells), local, BETA)
        return local.expand(self.batch, -1, -1)
