"""S as an operator in compiled kernels: the walk, products with S and Sᵀ, and the gradient of the window values."""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._affinity_arguments import Parts

from .affinity_operator import AffinityOperator
from .window_tiles import transpose_values


class CppAffinityOperator(AffinityOperator):
    """:class:`AffinityOperator` on the CPU. In float32 its parts stay in the dtype in which they are stored."""

    def __init__(
        self,
        parts: Parts,
        grid: list[int],
        window: list[int],
        cells: list[int],
        beta: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(parts, grid, window, cells, beta, dtype)
        self._mixture = beta
        self._parts = parts if dtype == torch.float32 else (self.values, self.u, self.v, self.dense)
        self._transposed: Parts | None = None

    def walk(self, seeds: Tensor, p: Tensor, alpha: float, steps: int) -> Tensor:
        """P after ``steps`` steps P ← (1−α) G + α S P: one call."""
        return self._run(self._parts, seeds, p, alpha, steps)

    def apply(self, p: Tensor) -> Tensor:
        """S P: one step with α = 1."""
        return self._run(self._parts, self._in_batch(p), None, 1.0, 1)

    def apply_transpose(self, p: Tensor) -> Tensor:
        """Sᵀ P: the same with what is left and right of S_global exchanged."""
        if self._transposed is None:
            values, u, v, dense = self.values, self.u, self.v, self.dense
            if values is not None and self.geometry is not None:
                values = transpose_values(values, self.geometry)
            self._transposed = values, v, u, None if dense is None else dense.transpose(-1, -2)
        return self._run(self._transposed, self._in_batch(p), None, 1.0, 1)

    def _in_batch(self, p: Tensor) -> Tensor:
        """P in the batch of S, where P is one matrix for all."""
        batch = max(part.shape[0] for part in self._parts if part is not None)
        return p.expand(batch, -1, -1) if p.shape[0] == 1 else p

    def _run(self, parts: Parts, seeds: Tensor, start: Tensor | None, alpha: float, steps: int) -> Tensor:
        run = torch.ops.nerve_kernels._random_walk_cpp
        result: Tensor = run(
            seeds, start, *parts, self.grid, self.window, self.cells, self._mixture, alpha, steps, False
        )
        return result

    def _values_gradient(self, left: Tensor, p: Tensor) -> Tensor:
        result: Tensor = torch.ops.nerve_kernels._window_gradient_cpp(left, p, self.grid, self.window)
        return result
