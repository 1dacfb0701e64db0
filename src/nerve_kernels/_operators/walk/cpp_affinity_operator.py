"""S as an operator in compiled kernels: the walk, products with S and Sᵀ, and the gradient of the window values."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators.library import AFFINITY, define_native

from .affinity_operator import AffinityOperator, working_dtype
from .window_product import window_gradient_cpp
from .window_tiles import transpose_values


def fake_walk(seeds: Tensor, *arguments: object) -> Tensor:
    """The seeds' shape."""
    return seeds.new_empty(seeds.shape)


# csrc/cpu/walk/random_walk.h: it starts from ``start`` where that is given, and besides what random_walk takes it takes
# v without u, the transpose of u without v
random_walk_cpp = define_native(
    f"_random_walk_cpp(Tensor seeds, Tensor? start, {AFFINITY}, float alpha, SymInt steps, bool normalize) -> Tensor",
    fake_walk,
)


WORK_PER_CALL = 2**34
"""Multiplications of one call of the compiled walk: about a second. A signal is seen between two calls."""

MIN_WORK_PER_STEP = 2**20  # what a step takes at least, in multiplications: its threads wait for each other


def walk_cpp(
    seeds: Tensor, start: Tensor | None, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool
) -> Tensor:
    """The compiled walk in as many calls as a signal may have to wait for; the bits are those of a single call."""
    widths = (part.shape[-1] for part in affinity.tensors)
    steps_per_call = max(1, WORK_PER_CALL // max(MIN_WORK_PER_STEP, seeds.numel() * sum(widths)))
    if steps <= steps_per_call:
        result: Tensor = random_walk_cpp(seeds, start, *affinity, alpha, steps, normalize)
        return result
    # between two calls P keeps the precision that it has within one
    wide, p = seeds.to(working_dtype(seeds, affinity)), start
    for first in range(0, steps, steps_per_call):
        count = min(steps_per_call, steps - first)
        p = random_walk_cpp(wide, p, *affinity, alpha, count, normalize and first + count == steps)
    assert p is not None  # there was at least one step
    return p.to(seeds.dtype)


class CppAffinityOperator(AffinityOperator):
    """:class:`AffinityOperator` on the CPU. Its parts stay in the dtype they are stored in: kernels widen them."""

    def __init__(self, affinity: AffinityArguments, dtype: torch.dtype) -> None:
        super().__init__(affinity, dtype)
        if affinity.v is not None and dtype == torch.float64:
            self.stored = affinity._replace(v=affinity.v.double())  # which a kernel would widen at every product
        self._transposed: AffinityArguments | None = None

    def walk(self, seeds: Tensor, p: Tensor, alpha: float, steps: int) -> Tensor:
        """P after ``steps`` steps P ← (1−α) G + α S P."""
        return walk_cpp(seeds, p, self.stored, alpha, steps, False)

    def apply(self, p: Tensor) -> Tensor:
        """S P: one step with α = 1."""
        return self._step(self.stored, p)

    def apply_transpose(self, p: Tensor) -> Tensor:
        """Sᵀ P: the same with what is left and right of S_global exchanged."""
        if self._transposed is None:
            self._transposed = self.stored._replace(
                values=None if self.values is None else transpose_values(self.values, self.geometry),
                u=self.v,
                v=self.u,
                dense=None if self.dense is None else self.dense.transpose(-1, -2),
            )
        return self._step(self._transposed, p)

    def _step(self, affinity: AffinityArguments, p: Tensor) -> Tensor:
        # P in the batch of S, where P is one matrix for all
        batch = max(part.shape[0] for part in affinity.tensors)
        seeds = p.expand(batch, -1, -1) if p.shape[0] == 1 else p
        result: Tensor = random_walk_cpp(seeds, None, *affinity, 1.0, 1, False)
        return result

    def _values_gradient(self, left: Tensor, p: Tensor) -> Tensor:
        result: Tensor = window_gradient_cpp(left, p, self.geometry.grid, self.geometry.window)
        return result
