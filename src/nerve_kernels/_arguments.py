"""What the implementations of operators are called with: shared by every backend, and importing none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grids import Grid

UNUSED_PAIR: Grid = (0, 0)
"""Stands for a window or cells where an affinity has none."""

MIN_CUDA_CAPABILITY = 8  # bfloat16 and asynchronous copies; the oldest that csrc/cuda/ is compiled for

Parts = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""(window values, u, v, dense), or their gradients; None for what is not there."""


class AffinityArguments(NamedTuple):
    """An affinity as the operators of the walk take it: β U Vᵀ + (1−β) S_local, or a dense S.

    ``values`` (B, N, kh·kw) are S_local on ``window``; V averages over ``cells`` where ``v`` is None. ``beta`` counts
    only where both parts are there.
    """

    values: Tensor | None = None
    u: Tensor | None = None
    v: Tensor | None = None
    dense: Tensor | None = None
    grid: Sequence[int] = UNUSED_PAIR
    window: Sequence[int] = UNUSED_PAIR
    cells: Sequence[int] = UNUSED_PAIR
    beta: float = 0.0

    @property
    def parts(self) -> Parts:
        """The tensors and what stands for them: (values, u, v, dense)."""
        return self.values, self.u, self.v, self.dense

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are there."""
        return [part for part in self.parts if part is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> AffinityArguments:
        """The same affinity with ``function`` of each tensor in its place."""
        values, u, v, dense = (None if part is None else function(part) for part in self.parts)
        return self._replace(values=values, u=u, v=v, dense=dense)


def tensors_of(arguments: Iterable[Any]) -> list[Tensor]:
    """The tensors among an implementation's arguments, those of an affinity included."""
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, AffinityArguments):
            found += argument.tensors
    return found


def why_not_on(kind: str, tensors: Iterable[Tensor], called: str = "") -> str | None:
    """Why a backend that runs on tensors of one kind of device cannot take these, or None where it can."""
    devices = {tensor.device.type for tensor in tensors}
    return None if devices == {kind} else f"it runs on {called or kind} tensors, got {', '.join(sorted(devices))}"


def why_not_on_gpu(tensors: list[Tensor], called: str = "") -> str | None:
    """The same for a backend that runs on GPUs: of ROCm, which torch calls cuda too, or of CUDA from Ampere on."""
    reason = why_not_on("cuda", tensors, called)
    if reason is None and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(tensors[0].device)
        if major < MIN_CUDA_CAPABILITY:
            return f"it needs compute capability {MIN_CUDA_CAPABILITY}.0 or newer, this GPU has {major}.{minor}"
    return reason


def why_not_float64(tensors: Iterable[Tensor]) -> str | None:
    """The same for a backend that computes in float32."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return "it computes in float32, got float64 inputs" if is_double else None


def match_gradient(gradient: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    """A gradient in the batch, dtype and memory order of what it belongs to; None where that is not there.

    It may be None for zeros, wider than the tensor, and (B, …) where the tensor's batch of 1 was broadcast.
    """
    if tensor is None:
        return None
    if gradient is None:
        return tensor.new_zeros(tensor.shape)
    if tensor.shape[0] == 1 and gradient.shape[0] != 1:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(tensor.dtype).contiguous()
