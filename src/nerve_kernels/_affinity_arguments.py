"""What an affinity is made of as the walk's operators take it: shared by every backend, and importing none."""

from __future__ import annotations

from torch import Tensor

from .grids import Grid

UNUSED_PAIR: Grid = (0, 0)
"""Stands for a window or cells where an affinity has none."""

OperatorArguments = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Grid, Grid, Grid, float]
"""(values, u, v, dense, grid, window, cells, beta): an affinity as the walk's operator takes it."""

Parts = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""(window values, u, v, dense): what an affinity is made of; v is None where cells give it."""


def sum_to_batch(grad: Tensor, batch: int) -> Tensor:
    """The gradient of a batch of 1 that was broadcast: the sum over the batch."""
    return grad.sum(0, keepdim=True) if batch == 1 and grad.shape[0] != 1 else grad


def match_parts(grads: Parts, parts: Parts, like: Tensor) -> list[Tensor]:
    """Gradients in the batch and dtype of the parts; an empty tensor stands for a part that is not there."""
    matched = []
    for grad, part in zip(grads, parts, strict=True):
        if part is None:
            matched.append(like.new_empty(0))
        elif grad is None:
            matched.append(part.new_zeros(part.shape))
        else:
            matched.append(sum_to_batch(grad, part.shape[0]).to(part.dtype).contiguous())
    return matched
