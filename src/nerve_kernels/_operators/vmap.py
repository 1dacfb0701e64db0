"""How every operator runs under ``torch.vmap``: the mapped dimension becomes a part of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def fold_batch(operator: Callable[..., Any], broadcastable: Sequence[int]) -> Callable[..., Any]:
    """A ``vmap`` rule that folds the mapped dimension into each tensor's leading batch dimension.

    ``broadcastable`` are the positions of arguments whose batch of 1 the operator itself broadcasts: where those are
    not mapped they stay as they are, instead of being repeated.
    """

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        size = info.batch_size
        # a dimension that is not a tensor's (that of a list, say) stands for nothing
        dims = [dim if isinstance(dim, int) else None for dim in in_dims]
        moved = [_mapped_first(argument, dim, size) for argument, dim in zip(arguments, dims, strict=True)]
        batch = max(argument.shape[1] for argument in moved if isinstance(argument, Tensor))
        folded = []
        for position, argument in enumerate(moved):
            if not isinstance(argument, Tensor):
                folded.append(argument)
            elif position in broadcastable and dims[position] is None and argument.shape[1] == 1:
                folded.append(arguments[position])
            else:
                folded.append(argument.expand(size, batch, *argument.shape[2:]).flatten(0, 1))
        outputs = operator(*folded)
        if isinstance(outputs, Tensor):
            return outputs.unflatten(0, (size, -1)), 0
        return tuple(output.unflatten(0, (size, -1)) for output in outputs), tuple(0 for _ in outputs)

    return rule


def _mapped_first(argument: Any, dim: int | None, size: int) -> Any:
    """A tensor with its mapped dimension in front, repeated where it has none."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.unsqueeze(0).expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
