"""Stage 2: what every form of S shares.

The classes hold tensors and sizes and are registered as pytrees, so that they pass through ``torch.compile``,
``torch.export`` and ``torch.func``. ``S @ P`` is the product with a matrix of token columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators import walk as operators
from nerve_kernels._operators.checks import (
    check_batch,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
    refusal,
    shape_of,
)
from nerve_kernels.grids import Grid


def _columns(p: Any, shape: tuple[int, int, int]) -> tuple[Tensor, bool]:
    """P as (B, N, C) and whether it came as (N, C)."""
    if isinstance(p, Tensor) and p.dim() == 2:
        return _columns(p.unsqueeze(0), shape)[0], shape[0] == 1
    check_tensor("P", p, 3, "(B, N, C) or (N, C)")
    if p.shape[1] != shape[1]:
        raise ValueError(refusal("P", f"{shape[1]} tokens as the affinity has", shape_of(p)))
    check_batch("P", p.shape[0], shape[0], " as the affinity has")
    return p, False


def check_matrix(matrix: Any, grid: Grid) -> None:
    """Raise where ``matrix`` is not (B, N, N) for the tokens of ``grid``."""
    check_tensor("matrix", matrix, 3, "(B, N, N)")
    check_tokens("grid", grid, matrix.shape[1], "matrix")
    check_shape("matrix", matrix, (matrix.shape[0], matrix.shape[1], matrix.shape[1]), "(B, N, N)")


def holds_placeholders(tensor: Any, grid: Any) -> bool:
    """Whether torch (export, pytree) is rebuilding a dataclass around stand-ins of its own, not a user making one."""
    if torch.compiler.is_compiling() or not isinstance(grid, tuple) or len(grid) != 2:
        return False
    wrapped = any(type(side).__module__.startswith("torch.") for side in grid)
    plain = any(isinstance(side, (int, float, complex, str, bytes)) for side in grid)
    return wrapped or not (isinstance(tensor, Tensor) or plain)


class Affinity:
    """What affinities share: a shape, products with token columns, a dense form, and moving about."""

    def operator_arguments(self) -> AffinityArguments:
        """This affinity as the arguments of the walk's operator."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N), as if it were dense."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.operator_arguments().tensors[0].device

    def __matmul__(self, p: Tensor) -> Tensor:
        """S P for P (B, N, C) or (N, C), in P's dtype, accumulated in float32 or better."""
        columns, squeeze = _columns(p, self.shape)
        check_same_device(affinity=self.operator_arguments().tensors[0], P=columns)
        product = self._product(columns)
        return product[0] if squeeze else product

    def _product(self, p: Tensor) -> Tensor:
        """S P for P (B, N, C): one step of a walk without restart."""
        wide = p.expand(self.shape[0], -1, -1) if p.shape[0] == 1 else p
        product: Tensor = operators.random_walk(wide, *self.operator_arguments(), 1.0, 1, False)
        return product

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix, for looking at and for tests: N² numbers."""
        raise NotImplementedError
