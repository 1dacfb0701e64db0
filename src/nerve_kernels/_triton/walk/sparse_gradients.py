"""The gradient of the values of stencils and graphs: share · Σ_c λ[i, c] P[j, c] for each pair (i, j) that is there.

A number is one program's, which goes through labels and, where one set of values served all of a batch, through the
batch in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import Launch

from .graph_step import GraphStep
from .rows import label_block
from .stencil_step import StencilStep, tile_of
from .walk_step import batch_stride


@triton.jit
def stencil_values_gradient_kernel(
    adjoint, p, grad_values, dilations, labels, height, width, batches, dilation_count, share,
    CLAMP: tl.constexpr, CENTRE: tl.constexpr, WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """``grad_values`` (B or 1, K, N): neighbouring tokens next to each other."""
    tiles_x = tl.cdiv(width, TILE_COLUMNS)
    tiles = tl.cdiv(height, TILE_ROWS) * tiles_x
    tile = tl.program_id(0) % tiles
    first = (tl.program_id(0) // tiles).to(tl.int64)
    token = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    y = (tile // tiles_x) * TILE_ROWS + token // TILE_COLUMNS
    x = (tile % tiles_x) * TILE_COLUMNS + token % TILE_COLUMNS
    valid = (y < height) & (x < width)
    rows = y.to(tl.int64) * width + x
    places: tl.constexpr = WINDOW_ROWS * WINDOW_COLUMNS - (not CENTRE)
    for number in range(dilation_count):
        dilation = tl.load(dilations + number)
        for index in range(places):
            place = index
            if not CENTRE:
                place += index // (places // 2)
            to_y = y + dilation * (place // WINDOW_COLUMNS - WINDOW_ROWS // 2)
            to_x = x + dilation * (place % WINDOW_COLUMNS - WINDOW_COLUMNS // 2)
            if CLAMP:
                to_y = tl.minimum(tl.maximum(to_y, 0), height - 1)
                to_x = tl.minimum(tl.maximum(to_x, 0), width - 1)
                there = valid
            else:
                there = valid & (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
            neighbours = to_y.to(tl.int64) * width + to_x
            total = tl.zeros([TILE_ROWS * TILE_COLUMNS], tl.float32)
            for turn in range(batches):
                image = (first * batches + turn) * height * width * labels
                for start in range(0, labels, LABELS):
                    label = start + tl.arange(0, LABELS)
                    mask = there[:, None] & (label < labels)[None, :]
                    left = tl.load(adjoint + image + (rows * labels)[:, None] + label[None, :], mask=mask, other=0.0)
                    right = tl.load(p + image + (neighbours * labels)[:, None] + label[None, :], mask=mask, other=0.0)
                    total += tl.sum(left * right.to(tl.float32), 1)
            plane = (first * dilation_count + number) * places + index
            at = grad_values + plane * height * width + rows
            tl.store(at, tl.load(at, mask=valid, other=0.0) + share * total, mask=valid)


@triton.jit
def graph_values_gradient_kernel(
    adjoint, p, rows, columns, grad_values, rows_batch, columns_batch, labels, tokens, entries, batches, share,
    ENTRIES: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """``grad_values`` (B or 1, E) contiguous; an entry outside the graph gets 0."""
    blocks = tl.cdiv(entries, ENTRIES)
    first = (tl.program_id(0) // blocks).to(tl.int64)
    entry = (tl.program_id(0) % blocks).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    valid = entry < entries
    total = tl.zeros([ENTRIES], tl.float32)
    for turn in range(batches):
        batch = first * batches + turn
        row = tl.load(rows + batch * rows_batch + entry, mask=valid, other=-1).to(tl.int64)
        column = tl.load(columns + batch * columns_batch + entry, mask=valid, other=-1).to(tl.int64)
        inside = (row >= 0) & (row < tokens) & (column >= 0) & (column < tokens)
        image = batch * tokens * labels
        for start in range(0, labels, LABELS):
            label = start + tl.arange(0, LABELS)
            mask = inside[:, None] & (label < labels)[None, :]
            left = tl.load(adjoint + image + (row * labels)[:, None] + label[None, :], mask=mask, other=0.0)
            right = tl.load(p + image + (column * labels)[:, None] + label[None, :], mask=mask, other=0.0)
            total += tl.sum(left * right.to(tl.float32), 1)
    at = grad_values + first * entries + entry
    tl.store(at, tl.load(at, mask=valid, other=0.0) + share * total, mask=valid)


class StencilGradient:
    """The gradient of a stencil's values, summed over steps."""

    def __init__(self, step: StencilStep) -> None:
        batch, tokens, columns = step.values.shape
        self.step = step
        self.planes = torch.zeros((batch, columns, tokens), dtype=torch.float32, device=step.values.device)

    @property
    def values(self) -> Tensor:
        """(B or 1, N, K)."""
        return self.planes.transpose(1, 2)

    def plan(self, adjoint: Tensor, p: Tensor, share: float) -> Launch:
        """The launch that adds share · λ Pᵀ where there is a value; both (B, N, C) contiguous."""
        affinity, kept = self.step.affinity, self.planes.shape[0]
        (height, width), labels = affinity.grid, p.shape[2]
        block = min(32, label_block(labels))
        rows, columns, _ = tile_of((height, width), kept, 64)
        return Launch(
            stencil_values_gradient_kernel,
            kept * triton.cdiv(height, rows) * triton.cdiv(width, columns),
            {"adjoint": adjoint, "p": p, "grad_values": self.planes, "dilations": self.step.dilations}
            | {"labels": labels, "height": height, "width": width, "batches": p.shape[0] // kept}
            | {"dilation_count": len(affinity.dilations), "share": share},
            {"CLAMP": affinity.clamp, "CENTRE": affinity.centre}
            | {"WINDOW_ROWS": affinity.window[0], "WINDOW_COLUMNS": affinity.window[1]}
            | {"TILE_ROWS": rows, "TILE_COLUMNS": columns, "LABELS": block},
            4,
            1,
        )


class GraphGradient:
    """The gradient of a graph's values, summed over steps."""

    def __init__(self, step: GraphStep) -> None:
        self.step, self.rows = step, step.rows()
        self.values = torch.zeros(step.values.shape, dtype=torch.float32, device=step.values.device)

    def plan(self, adjoint: Tensor, p: Tensor, share: float) -> Launch:
        """The launch that adds share · λ Pᵀ where there is an entry; both (B, N, C) contiguous."""
        (kept, entries), (batch, tokens, labels) = self.values.shape, p.shape
        block = min(32, label_block(labels))
        at_once = 2048 // block
        return Launch(
            graph_values_gradient_kernel,
            kept * triton.cdiv(entries, at_once),
            {"adjoint": adjoint, "p": p, "rows": self.rows, "columns": self.step.columns, "grad_values": self.values}
            | {"rows_batch": batch_stride(self.rows), "columns_batch": batch_stride(self.step.columns)}
            | {"labels": labels, "tokens": tokens, "entries": entries, "batches": batch // kept, "share": share},
            {"ENTRIES": at_once, "LABELS": block},
            4,
            1,
        )


def sparse_gradient(step: StencilStep | GraphStep) -> StencilGradient | GraphGradient:
    """The gradient of whichever it is."""
    return StencilGradient(step) if isinstance(step, StencilStep) else GraphGradient(step)
