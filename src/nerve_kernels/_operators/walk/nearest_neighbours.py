"""nearest_columns and add_transpose: which tokens a token resembles most, and a graph that is seen from both ends."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.library import Operator


def eager_nearest(products: Tensor, k: int) -> Tensor:
    """(rows, k) places of the k largest of each row, ascending; of equals those before. NaN is least."""
    products = products.masked_fill(products.isnan(), -torch.inf)
    smallest = products.kthvalue(products.shape[1] - k + 1, dim=1, keepdim=True).values
    above, equal = products > smallest, products == smallest
    room = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(-1, k).to(torch.int32)


def eager_add_transpose(columns: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W + Wᵀ of (N, k) entries, those of weight 0 counting for nothing, as compressed rows with room at the end."""
    tokens, k = columns.shape
    rows = torch.arange(tokens, device=columns.device)[:, None].expand_as(columns)
    used = weights != 0
    rows, targets, values = add_transpose_entries(rows[used], columns[used].long(), weights[used], tokens)
    ends = torch.searchsorted(rows, torch.arange(1, tokens + 1, device=rows.device))
    room = (0, 2 * tokens * k - len(rows))
    targets, values = (torch.nn.functional.pad(part, room) for part in (targets.to(torch.int32), values))
    return torch.cat([ends.new_zeros(1), ends]), targets, values


def add_transpose_entries(rows: Tensor, columns: Tensor, weights: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """W + Wᵀ of entries (row, column, weight), ordered by row and column; differentiable in the weights."""
    places = torch.cat([rows * tokens + columns, columns * tokens + rows])
    places, order = torch.sort(places, stable=True)
    both = weights.repeat(2)[order]
    unlike_before = torch.ones_like(places, dtype=torch.bool)
    unlike_before[1:] = places[1:] != places[:-1]
    first = unlike_before.nonzero().squeeze(1)
    # a pair of tokens that see each other stands twice, one beside the other
    followed = torch.nn.functional.pad(~unlike_before, (0, 1))[first + 1]
    second = torch.where(followed, both[(first + 1).clamp(max=max(0, len(both) - 1))], 0)
    kept = places[first]
    return kept // tokens, kept % tokens, both[first] + second


def fake_nearest(products: Tensor, k: int) -> Tensor:
    """(rows, k) in int32."""
    return products.new_empty((products.shape[0], k), dtype=torch.int32)


def fake_add_transpose(columns: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, columns, values."""
    tokens, k = columns.shape
    return (
        columns.new_empty((tokens + 1,), dtype=torch.int64),
        columns.new_empty((2 * tokens * k,)),
        weights.new_empty((2 * tokens * k,)),
    )


nearest_columns = Operator(
    "nearest_columns(Tensor products, SymInt k) -> Tensor", eager=eager_nearest, fake=fake_nearest, vmap=False
)
add_transpose = Operator(
    "add_transpose(Tensor columns, Tensor weights) -> (Tensor, Tensor, Tensor)",
    eager=eager_add_transpose,
    fake=fake_add_transpose,
    vmap=False,
)
