"""(I − αS) X = R for a symmetric S with no eigenvalue beyond 1 in magnitude, by conjugate gradients.

Each label column of an image has a search direction and step lengths of its own, and all of them share every product
with S. As in ``minimal_residual`` a cycle runs in float32 and the residual of the corrected solution is taken in
float64. Since ‖(I − αS)⁻¹‖₂ ≤ 1/(1 − α), a column's residual r bounds its error elementwise by ‖r‖₂ / (1 − α).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerve_kernels._operators.checks import refusal

from .minimal_residual import Effort, LinearMap, correct_in_cycles

PRODUCTS_UNREAD = 4
"""Products between two looks at the residual, which wait for the device."""

MAX_CYCLE = 200
"""Products of a cycle: what float32 has lost by then, the next one makes good."""


def column_norms(columns: Tensor) -> Tensor:
    """‖·‖₂ of each column of (B, N, C): (B, 1, C) in float64."""
    return torch.linalg.vector_norm(columns, dim=1, keepdim=True, dtype=torch.float64)


def iterate(
    product: LinearMap, right: Tensor, alpha: float, iterations: int, goal: float, effort: Effort | None = None
) -> tuple[Tensor, bool]:
    """X after so many iterations from 0, or fewer once no column's residual is beyond ``goal`` in ‖·‖₂.

    Returned with it: whether every direction had positive curvature, which an eigenvalue of S beyond 1/α can deny.
    """
    x, residual, direction = torch.zeros_like(right), right, right
    square = (residual * residual).sum(1, keepdim=True)
    bent = torch.ones((), dtype=torch.bool, device=right.device)
    for count in range(1, iterations + 1):
        image = torch.add(direction, product(direction), alpha=-alpha)
        curvature = (direction * image).sum(1, keepdim=True)
        bent = bent & (~(curvature < 0)).all()
        # a column that is solved to the last bit has no direction left
        length = torch.where(square > 0, square / curvature, 0)
        x = x.addcmul(length, direction) if count > 1 else length * direction
        residual = residual.addcmul(length, image, value=-1)
        new_square = (residual * residual).sum(1, keepdim=True)
        if effort is not None and (count % PRODUCTS_UNREAD == 0 or count == iterations):
            largest = effort.read(new_square.max())
            if not largest > goal * goal:
                break
        direction = residual.addcmul(torch.where(square > 0, new_square / square, 0), direction)
        square = new_square
    return x, bool(bent)


def solve_symmetric(
    narrow: LinearMap, wide: LinearMap, right: Tensor, alpha: float, target: float, effort: Effort
) -> tuple[Tensor, Tensor]:
    """(X, its residual right − X + αSX in float64), no column beyond ``target`` in ‖·‖₂ if float64 can do that."""
    narrow, wide = effort.counted(narrow), effort.counted(wide)
    if not right.numel() or alpha == 0:
        return right, torch.zeros_like(right)

    def cycle(scaled: Tensor, goal: float) -> Tensor:
        product = narrow if scaled.dtype == torch.float32 else wide
        correction, bent = iterate(product, scaled, alpha, MAX_CYCLE, goal, effort)
        if not bent:
            came = f"alpha = {alpha:.6g} and one beyond 1/alpha, with which there is no limit"
            do = "normalise it as D^-1/2 W D^-1/2, or give symmetric=False"
            raise ValueError(refusal("affinity", "no eigenvalue beyond 1 in magnitude (symmetric=True)", came, do))
        return correction

    def largest_norm(columns: Tensor) -> float:
        return effort.read(column_norms(columns).max())

    best, residual, _ = correct_in_cycles(cycle, wide, right, alpha, target, largest_norm)
    return best, residual
