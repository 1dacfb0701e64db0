"""P' = a · base + share · S_local P on a graph in compressed rows, and with its transpose, a graph as well.

A program takes some rows of about one length, from the longest on: rows are sorted by length once a walk, on the
device. It goes through their entries a block at a time, with all labels, or 64 of them, in registers. Every row is one
program's, summed in one order. An index outside the graph is never followed; an empty row is the identity's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import Launch, Launches

from .rows import label_block, normalized, row_layout, row_places
from .walk_step import batch_stride

ACCUMULATORS = 2048
"""Rows × entries × labels of a program: 16 in each of 128 threads."""
MAX_ENTRIES = 16


@triton.jit
def graph_step_kernel(
    p, base, values, columns, pointers, own_pointers, order, out,
    p_batch, p_units, base_batch, base_units, out_batch, out_units, values_batch, columns_batch, pointers_batch,
    own_batch, order_batch, labels, tokens, entries, base_share, local_share,
    P_ALIGN: tl.constexpr, BASE_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr,
    BASE: tl.constexpr, NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """``own_pointers`` are those of the graph that was not transposed: its empty rows are the identity's."""
    p_pitch, out_pitch = p_units * P_ALIGN, out_units * OUT_ALIGN
    label_blocks, row_blocks = tl.cdiv(out_pitch, LABELS), tl.cdiv(tokens, ROWS)
    batch = (tl.program_id(0) // (label_blocks * row_blocks)).to(tl.int64)
    place = (tl.program_id(0) // label_blocks) % row_blocks * ROWS + tl.arange(0, ROWS)
    label = (tl.program_id(0) % label_blocks) * LABELS + tl.arange(0, LABELS)
    valid = place < tokens
    row = tl.load(order + batch * order_batch + place, mask=valid, other=0).to(tl.int64)

    pointers += batch * pointers_batch
    begin = tl.load(pointers + row, mask=valid, other=0).to(tl.int64)
    end = tl.load(pointers + row + 1, mask=valid, other=0).to(tl.int64)
    begin, end = tl.maximum(begin, 0), tl.minimum(end, entries)
    columns, values, p = columns + batch * columns_batch, values + batch * values_batch, p + batch * p_batch
    total = tl.zeros([ROWS, ENTRIES, LABELS], tl.float32)
    p_label = row_places(label, p_units, P_ALIGN)
    for start in range(0, tl.max(end - begin), ENTRIES):
        at = begin[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        is_entry = at < end[:, None]
        column = tl.load(columns + at, mask=is_entry, other=-1).to(tl.int64)
        inside = (column >= 0) & (column < tokens)
        weight = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        at_p = (column * p_pitch)[:, :, None] + p_label[None, None, :]
        neighbour = tl.load(p + at_p, mask=inside[:, :, None], other=0.0)
        total += weight[:, :, None] * neighbour.to(tl.float32)
    result = tl.sum(total, 1)
    own_begin = tl.load(own_pointers + batch * own_batch + row, mask=valid, other=0)
    own_end = tl.load(own_pointers + batch * own_batch + row + 1, mask=valid, other=1)
    at_p = (row * p_pitch)[:, None] + p_label[None, :]
    own = tl.load(p + at_p, mask=(own_begin == own_end)[:, None], other=0.0)
    result = tl.where((label < labels)[None, :], (result + own.to(tl.float32)) * local_share, 0.0)
    if BASE:
        at = base + batch * base_batch + (row * base_units * BASE_ALIGN)[:, None] + label[None, :]
        result += base_share * tl.load(at, mask=valid[:, None] & (label < labels)[None, :], other=0.0).to(tl.float32)
    if NORMALIZE:
        result = normalized(result)
    at = out + batch * out_batch + (row * out_pitch)[:, None] + label[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=valid[:, None] & (label < out_pitch)[None, :])


@dataclass(frozen=True)
class GraphStep:
    """S_local on a graph, or its transpose: all of it (B or 1, …) and contiguous, batch by batch."""

    values: Tensor
    columns: Tensor
    pointers: Tensor
    own_pointers: Tensor
    order: Tensor

    @classmethod
    def of(cls, affinity: AffinityArguments) -> GraphStep:
        """That of an affinity."""
        values, columns, pointers = affinity.values, affinity.columns, affinity.row_pointers
        assert values is not None
        assert columns is not None
        assert pointers is not None
        pointers = pointers.contiguous()
        return cls(values.contiguous(), columns.contiguous(), pointers, pointers, rows_by_length(pointers))

    def rows(self) -> Tensor:
        """Of each entry the row it lies in, N where in none, (B or 1, E) int32."""
        batch = max(self.pointers.shape[0], self.columns.shape[0])
        entries = torch.arange(self.columns.shape[1], device=self.columns.device).expand(batch, -1)
        ends = self.pointers[:, 1:].long().expand(batch, -1)
        return torch.searchsorted(ends.contiguous(), entries.contiguous(), right=True, out_int32=True)

    def transpose(self) -> GraphStep:
        """Sᵀ: entries sorted by column, those outside the graph last and in no row; nothing waits for the device."""
        tokens, rows = self.pointers.shape[1] - 1, self.rows()
        columns = self.columns.long().expand_as(rows)
        inside = (rows < tokens) & (columns >= 0) & (columns < tokens)
        sorted_columns, places = torch.sort(torch.where(inside, columns, tokens), dim=1, stable=True)
        edges = torch.arange(tokens + 1, device=rows.device).expand(rows.shape[0], -1).contiguous()
        pointers = torch.searchsorted(sorted_columns, edges)
        batch = max(rows.shape[0], self.values.shape[0])
        return replace(
            self,
            values=self.values.expand(batch, -1).gather(1, places.expand(batch, -1)),
            columns=rows.gather(1, places),
            pointers=pointers,
            order=rows_by_length(pointers),
        )

    def plan(
        self, p: Tensor, base: Tensor | None, out: Tensor, base_share: float, share: float, *, normalize: bool = False
    ) -> Launches:
        """The launch that writes ``out`` = base_share · ``base`` + share · S_local ``p``; all (B, N, C).

        Rows of ``p`` and ``out`` may be longer than C: what fills them up is carried along.
        """
        batch, tokens, labels = out.shape
        entries, block = self.columns.shape[1], label_block(out.stride(1))
        each = min(MAX_ENTRIES, triton.next_power_of_2(max(1, entries // max(1, tokens))))
        rows = ACCUMULATORS // (each * block)
        layouts, aligned = row_layout(p=p, base=p if base is None else base, out=out)
        launch = Launch(
            graph_step_kernel,
            batch * triton.cdiv(tokens, rows) * triton.cdiv(out.stride(1), block),
            {"p": p, "base": p if base is None else base, "values": self.values, "columns": self.columns}
            | {"pointers": self.pointers, "own_pointers": self.own_pointers, "order": self.order, "out": out}
            | layouts
            | {"values_batch": batch_stride(self.values), "columns_batch": batch_stride(self.columns)}
            | {"pointers_batch": batch_stride(self.pointers), "own_batch": batch_stride(self.own_pointers)}
            | {"order_batch": batch_stride(self.order), "labels": labels, "tokens": tokens, "entries": entries}
            | {"base_share": base_share, "local_share": share},
            aligned
            | {"BASE": base is not None, "NORMALIZE": normalize}
            | {"ROWS": rows, "ENTRIES": each, "LABELS": block},
            4,
            1,
        )
        return Launches((launch, ("p", "out")))


def rows_by_length(pointers: Tensor) -> Tensor:
    """The rows of each graph from the longest to the shortest, (B or 1, N) int32; ties as they come."""
    return torch.sort(pointers.diff(dim=1), dim=1, descending=True, stable=True).indices.to(torch.int32)
