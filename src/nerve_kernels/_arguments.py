"""What the implementations of operators are called with: shared by every backend, and importing none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grids import Grid, stencil_offsets

UNUSED_PAIR: Grid = (0, 0)
"""Stands for a window or cells where an affinity has none."""

PLAIN_DILATIONS = (1,)
"""Those of a window whose tokens are next to each other."""

MIN_CUDA_CAPABILITY = 8  # bfloat16 and asynchronous copies; the oldest that csrc/cuda/ is compiled for

Parts = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""(window values, u, v, dense), or their gradients; None for what is not there."""


class AffinityArguments(NamedTuple):
    """An affinity as the operators of the walk take it: β U Vᵀ + (1−β) S_local, or a dense S.

    S_local is one of three. A window: ``values`` (B, N, kh·kw). A stencil, which is what a window becomes by
    ``dilations``, without its ``centre`` or with ``clamp`` at the border: ``values`` (B, N, K). A graph, in which
    ``values`` (B, E) are the entries of rows from ``row_pointers`` (B, N + 1) and ``columns`` (B, E); an empty row
    stands for the identity's.

    V averages over ``cells`` where ``v`` is None. ``beta`` counts only where both parts are there. ``symmetric`` says
    that S is, and that no eigenvalue is beyond 1 in magnitude.
    """

    values: Tensor | None = None
    u: Tensor | None = None
    v: Tensor | None = None
    dense: Tensor | None = None
    row_pointers: Tensor | None = None
    columns: Tensor | None = None
    grid: Sequence[int] = UNUSED_PAIR
    window: Sequence[int] = UNUSED_PAIR
    cells: Sequence[int] = UNUSED_PAIR
    beta: float = 0.0
    dilations: Sequence[int] = PLAIN_DILATIONS
    centre: bool = True
    clamp: bool = False
    symmetric: bool = False

    @property
    def parts(self) -> Parts:
        """The tensors that hold numbers, and what stands for them: (values, u, v, dense)."""
        return self.values, self.u, self.v, self.dense

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of numbers that are there."""
        return [part for part in self.parts if part is not None]

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.dense.shape[1] if self.dense is not None else self.grid[0] * self.grid[1]

    @property
    def batch(self) -> int:
        """B of the largest part."""
        indices = [self.row_pointers] if self.row_pointers is not None else []
        return max(part.shape[0] for part in [*self.tensors, *indices])

    @property
    def local_kind(self) -> str:
        """What S_local is: "window", "stencil", "graph", or "" where there is none."""
        if self.values is None:
            return ""
        if self.row_pointers is not None:
            return "graph"
        plain = tuple(self.dilations) == PLAIN_DILATIONS and self.centre and not self.clamp
        return "window" if plain else "stencil"

    def offsets(self) -> list[Grid]:
        """The offsets of a stencil, or of a window as one."""
        return stencil_offsets((self.window[0], self.window[1]), self.dilations, self.centre)

    def without_stencil(self) -> tuple[Any, ...]:
        """What ``AFFINITY_PARTS`` of a schema stands for: all but what makes a stencil of a window, and symmetry."""
        return tuple(self)[: self._fields.index("dilations")]

    def entries_per_row(self) -> int:
        """Numbers that a row of S is made of, on average where it is a graph."""
        widths = [part.shape[-1] for part in self.parts[1:] if part is not None]
        if self.values is not None:
            widths.append(self.values[0].numel() // max(1, self.num_tokens))
        return sum(widths)

    def map(self, function: Callable[[Tensor], Tensor]) -> AffinityArguments:
        """The same affinity with ``function`` of each tensor of numbers in its place."""
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
            found += [indices for indices in (argument.row_pointers, argument.columns) if indices is not None]
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
    """A gradient in the batch, dtype and memory order of what it belongs to; None where that holds indices, or is not.

    It may be None for zeros, wider than the tensor, and (B, …) where the tensor's batch of 1 was broadcast.
    """
    if tensor is None or not tensor.is_floating_point():
        return None
    if gradient is None:
        return tensor.new_zeros(tensor.shape)
    if tensor.shape[0] == 1 and gradient.shape[0] != 1:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(tensor.dtype).contiguous()
