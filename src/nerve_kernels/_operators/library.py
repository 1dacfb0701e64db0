"""How an operator is made: schema, implementation, fake, gradient and batching rule, each registered in one call.

``Library.define`` and ``impl`` are used rather than ``torch.library.custom_op``: the same operator at a fraction of the
overhead of a call. Every public operator takes its batch in the leading dimension of each tensor, so one batching rule
serves them all: the mapped dimension is folded into the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "nerve_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str) -> None:
    """Declare an operator from ``name(arguments) -> results``."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def implement(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register what an operator computes, on every device, and the shapes of what it returns.

    Autocast is switched off inside: operators state their own precision (float32 or better), and a surrounding
    autocast region must not lower it.
    """

    def without_autocast(*arguments: Any) -> Any:
        device = next(item.device for item in arguments if isinstance(item, Tensor))
        if not torch.is_autocast_enabled(device.type):
            return function(*arguments)
        with torch.autocast(device.type, enabled=False):
            return function(*arguments)

    LIBRARY.impl(name, without_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register an operator's gradient. ``backward`` calls an operator of its own, so that it can be compiled whole."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def fold_batch(name: str, broadcastable: Sequence[int] = ()) -> None:
    """Register a ``vmap`` rule that folds the mapped dimension into each tensor's leading batch dimension.

    ``broadcastable`` are the positions of arguments whose batch of 1 the operator itself broadcasts: where those are
    not mapped they stay as they are, instead of being repeated.
    """
    operator = getattr(torch.ops.nerve_kernels, name).default

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

    torch.library.register_vmap(f"{NAMESPACE}::{name}", rule, lib=LIBRARY)


def _mapped_first(argument: Any, dim: int | None, size: int) -> Any:
    """A tensor with its mapped dimension in front, repeated where it has none."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.unsqueeze(0).expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any input is float64, else float32: the precision every sum is taken in."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32
