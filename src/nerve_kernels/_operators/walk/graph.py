"""The product with a sparse graph in compressed rows, in plain torch: gather, multiply, sum by row.

An empty row stands for the identity's: a token without neighbours keeps what it has. An index outside the graph is
never followed; its entry counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_NUMBERS = 2**24
"""Products of entries with rows of P that are held at a time: 64 MiB in float32."""


def rows_of_entries(row_pointers: Tensor, entries: int) -> Tensor:
    """For each entry of one graph the row it lies in, (E,), int64; N where it belongs to none."""
    places = torch.arange(entries, device=row_pointers.device)
    return torch.bucketize(places, row_pointers[1:].long(), right=True)


def sum_by_row(messages: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """``out`` (N, C) with each row of ``messages`` (E, C) added to the row it belongs to; bitwise repeatable."""
    if out.device.type == "cpu":
        return out.index_add(0, rows, messages)
    # index_add would use atomics there; this one sorts
    return out.index_put((rows,), messages, accumulate=True)


class GraphPart:
    """S_local as a graph, times its share of S."""

    def __init__(self, values: Tensor, share: float, row_pointers: Tensor, columns: Tensor, tokens: int) -> None:
        self.values, self.share, self.tokens = values, share, tokens
        self.indices = [self._indices(*graph) for graph in zip(row_pointers, columns, strict=True)]
        counts = row_pointers.diff(dim=1)
        self.alone = (counts == 0).unsqueeze(-1)

    def _indices(self, row_pointers: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(row, column, whether both are in the graph) of each entry."""
        rows, columns = rows_of_entries(row_pointers, columns.shape[0]), columns.long()
        inside = (rows < self.tokens) & (columns >= 0) & (columns < self.tokens)
        last = max(0, self.tokens - 1)
        return rows.clamp(max=last), columns.clamp(0, last), inside

    def apply(self, p: Tensor) -> Tensor:
        """share · S_local P."""
        return self._multiply(p, transpose=False)

    def apply_transpose(self, p: Tensor) -> Tensor:
        """share · S_localᵀ P."""
        return self._multiply(p, transpose=True)

    def _multiply(self, p: Tensor, *, transpose: bool) -> Tensor:
        products = []
        for values, (rows, columns, inside), image in self._images(p):
            source, target = (rows, columns) if transpose else (columns, rows)
            weights = torch.where(inside, values, 0).unsqueeze(-1)
            total = torch.zeros_like(image)
            step = max(1, BLOCK_NUMBERS // max(1, image.shape[1]))
            for start in range(0, weights.shape[0], step):
                block = slice(start, start + step)
                total = sum_by_row(weights[block] * image[source[block]], target[block], total)
            products.append(total)
        return self.share * (torch.stack(products) + torch.where(self.alone, p, 0))

    def gradient(self, left: Tensor, p: Tensor) -> Tensor:
        """The gradient of ⟨left, share · S_local P⟩ for the values."""
        gradients = []
        for (values, (rows, columns, inside), image), left_image in zip(self._images(p), left, strict=True):
            step = max(1, BLOCK_NUMBERS // max(1, image.shape[1]))
            blocks = [slice(start, start + step) for start in range(0, values.shape[0], step)]
            parts = [(left_image[rows[block]] * image[columns[block]]).sum(-1) for block in blocks]
            gradient = torch.cat(parts) if parts else torch.zeros_like(values)
            gradients.append(torch.where(inside, gradient, 0))
        return self.share * torch.stack(gradients)

    def _images(self, p: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]]:
        """Values, indices and P of each image."""
        batch = max(p.shape[0], self.values.shape[0], len(self.indices))
        for image in range(batch):
            yield (
                self.values[min(image, self.values.shape[0] - 1)],
                self.indices[min(image, len(self.indices) - 1)],
                p[min(image, p.shape[0] - 1)],
            )


def transpose_graph(
    row_pointers: Tensor, columns: Tensor, values: Tensor, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(row pointers, columns, values) of the transpose, a batch of graphs on the CPU; the rows alone become entries.

    The graphs of a batch may end with different numbers of entries: the shorter ones are filled up behind their last.
    """
    transposed = []
    for image in range(max(row_pointers.shape[0], columns.shape[0], values.shape[0])):
        pointers, targets, weights = (part[min(image, part.shape[0] - 1)] for part in (row_pointers, columns, values))
        count = int(pointers[-1])
        rows = rows_of_entries(pointers, count)
        alone = (pointers.diff() == 0).nonzero().squeeze(1)
        targets = torch.cat([targets[:count].long(), alone])
        # an empty row of the transpose would be the identity's: a token that nobody sees gets an entry of 0
        unseen = (torch.bincount(targets, minlength=tokens) == 0).nonzero().squeeze(1)
        sources, targets = torch.cat([rows, alone, unseen]), torch.cat([targets, unseen])
        weights = torch.cat([weights[:count], weights.new_ones(alone.shape), weights.new_zeros(unseen.shape)])
        order = torch.sort(targets, stable=True).indices
        edges = torch.arange(1, tokens + 1, device=targets.device)
        ends = torch.searchsorted(targets[order], edges)
        transposed.append((torch.cat([ends.new_zeros(1), ends]), sources[order].to(torch.int32), weights[order]))
    most = max(len(part) for _, part, _ in transposed)

    def filled(parts: list[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(part, (0, most - len(part))) for part in parts])

    return (
        torch.stack([pointers for pointers, _, _ in transposed]),
        filled([sources for _, sources, _ in transposed]),
        filled([weights for _, _, weights in transposed]),
    )
