"""(I − αS) X = R solved in float64 while nearly all the work is done in float32.

A cycle finds, in float32, the correction from a Krylov space of S that leaves the smallest residual (GMRES, whose
Arnoldi process is on S itself); the residual of the corrected solution is then taken in float64, and what is left of it
is the next cycle's right-hand side (iterative refinement). All label columns of an image share one space and its
coefficients: they have the spectrum in common, and the small systems stay one per image.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]

MAX_BASIS = 20
"""Products with S in a cycle. The basis is most of the memory: a copy of P, in float32, for each."""

MAX_PRODUCTS_UNREAD = 4
"""Products between two looks at how far a cycle has come; fewer where the rate so far says that it is nearly there."""

MALLOC_KEEPS = 2**25
"""Bytes of the largest block that glibc's malloc may use again instead of giving it back."""

USUAL_RATE = 0.1
"""What a product leaves of the residual, before there is a rate to go by."""

ROUNDING = {torch.float32: 2.0**-25, torch.float64: 2.0**-54}
"""A cycle lowers the residual to about this much of its solution: half the dtype's epsilon."""

STEPS_PER_READING = 8
"""Walk steps between two looks, where cycles have failed."""

SLOWEST = 0.5
"""A cycle that leaves more than this much of the residual has failed: the next one runs in float64."""


def largest_magnitude(values: Tensor) -> Tensor:
    """‖values‖_∞ over all of them, NaN where one is: by extremes, which are vectorised as torch's norm is not."""
    least, most = torch.aminmax(values)
    return torch.maximum(-least, most)


@dataclass
class Effort:
    """What a solve took: products with S in each precision, and the values that were read from the device."""

    products: int = 0
    wide_products: int = 0
    readings: int = 0

    def counted(self, product: LinearMap) -> LinearMap:
        """``product``, counting its calls."""

        def call(p: Tensor) -> Tensor:
            self.products += 1
            self.wide_products += p.dtype == torch.float64
            return product(p)

        return call

    def read(self, value: Tensor) -> float:
        """A number from the device, which waits for all that was started there."""
        self.readings += 1
        return float(value)

    def read_largest(self, values: Tensor) -> float:
        """The largest magnitude among values."""
        return self.read(largest_magnitude(values))


def _untouched(like: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A tensor whose values are anything. Of a large one on the CPU what is never touched takes no memory.

    What malloc gives back to the system is new at every call, and to touch it for the first time in small pages costs
    as much as several passes over it.
    """
    size = math.prod(sizes) * like.element_size()
    if like.device.type != "cpu" or size <= MALLOC_KEEPS or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(sizes)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a wish, which not every system grants
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(sizes)


def _least_residuals(hessenberg: Tensor, alpha: float, length: Tensor) -> tuple[Tensor, Tensor]:
    """(y, what is left): y minimises ‖length·e₁ − (Ī − α H) y‖, for each image."""
    rows, columns = hessenberg.shape[1:]
    system = torch.eye(rows, columns, dtype=hessenberg.dtype) - alpha * hessenberg
    right = torch.zeros(hessenberg.shape[0], rows, 1, dtype=hessenberg.dtype)
    right[:, 0, 0] = length
    y = torch.linalg.lstsq(system, right).solution
    return y, right - system @ y


def _unread(goal: float, rate: float) -> int:
    """Products until the next look, where each leaves ``rate`` of the residual and ``goal`` of it may be left."""
    expected = math.log(goal) / math.log(rate) if 0 < goal < 1 and 0 < rate < 1 else 1
    return max(1, math.ceil(min(expected, MAX_PRODUCTS_UNREAD)))


def _correct(product: LinearMap, residual: Tensor, alpha: float, goal: float, effort: Effort) -> Tensor:
    """X with ‖residual − X + α·product(X)‖_∞ ≤ goal, if one cycle reaches that in the dtype of ``residual``."""
    batch, size, dtype, device = residual.shape[0], residual[0].numel(), residual.dtype, residual.device
    basis = _untouched(residual, (batch, MAX_BASIS + 1, size))
    hessenberg = torch.zeros(batch, MAX_BASIS + 1, MAX_BASIS, dtype=torch.float64, device=device)
    length = torch.linalg.vector_norm(residual.flatten(1), dim=1, keepdim=True, dtype=torch.float64)

    def append(vector: Tensor, norm: Tensor, place: int) -> None:
        # a space that S maps into itself ends with a vector of zeros, which changes nothing
        torch.div(vector, torch.where(norm == 0, 1, norm).to(dtype), out=basis[:, place])

    append(residual.flatten(1), length, 0)
    reading, coefficients = _unread(goal, USUAL_RATE), residual
    for count in range(1, MAX_BASIS + 1):
        known = basis[:, :count]
        image = product(basis[:, count - 1].unflatten(1, residual.shape[1:])).flatten(1).unsqueeze(2)
        share = known @ image
        image = torch.baddbmm(image, known.transpose(1, 2), share, alpha=-1).squeeze(2)
        norm = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        hessenberg[:, :count, count - 1] = share.squeeze(2)
        hessenberg[:, count, count - 1] = norm.squeeze(1)
        append(image, norm, count)
        if count < min(reading, MAX_BASIS):
            continue
        small, start = hessenberg[:, : count + 1, :count].cpu(), length[:, 0].cpu()
        coefficients, left = _least_residuals(small, alpha, start)
        largest = effort.read_largest(left.to(basis).transpose(1, 2) @ basis[:, : count + 1])
        if not largest > goal:
            break
        reading = count + _unread(goal / largest, largest ** (1 / count))
    return (coefficients.to(basis).transpose(1, 2) @ basis[:, : coefficients.shape[1]]).view(residual.shape)


def correct_in_cycles(
    cycle: Callable[[Tensor, float], Tensor],
    wide: LinearMap,
    right: Tensor,
    alpha: float,
    target: float,
    norm_of: Callable[[Tensor], float],
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
) -> tuple[Tensor, Tensor, float]:
    """(X, its residual right − X + αSX in float64, the norm of that), by iterative refinement until it is ``target``.

    ``cycle(r, goal)`` gives an X with a residual of about ``goal`` for a right-hand side r of norm 1, in r's dtype: the
    first of ``dtypes``, and the next one where a cycle has failed.
    """
    best, residual, norm = right.new_zeros(()).expand_as(right), right, norm_of(right)
    for dtype in dtypes:
        failed = False
        while target < norm < math.inf and not failed:
            # scaled to 1, so that a residual of any size keeps its digits in float32
            goal = max(target / norm, ROUNDING[dtype] / (1 - alpha))
            scaled = torch.div(residual, norm, out=residual.new_empty(residual.shape, dtype=dtype))
            x = torch.add(best, cycle(scaled, goal), alpha=norm)
            left = torch.sub(right, x).add_(wide(x), alpha=alpha)
            new_norm = norm_of(left)
            failed = not new_norm / norm < SLOWEST
            if new_norm < norm:
                best, residual, norm = x, left, new_norm
    return best, residual, norm


def solve_restart(
    narrow: LinearMap, wide: LinearMap, right: Tensor, alpha: float, target: float, effort: Effort
) -> tuple[Tensor, Tensor]:
    """(X, its residual right − X + αSX in float64), at most ``target`` in magnitude if float64 can do that.

    ``narrow`` and ``wide`` are the product with S in float32 and in float64. Bitwise repeatable: sums are taken by
    torch's own reductions in a fixed order.
    """
    narrow, wide = effort.counted(narrow), effort.counted(wide)
    if not right.numel() or alpha == 0:
        return right, torch.zeros_like(right)

    def cycle(scaled: Tensor, goal: float) -> Tensor:
        return _correct(narrow if scaled.dtype == torch.float32 else wide, scaled, alpha, goal, effort)

    best, residual, norm = correct_in_cycles(cycle, wide, right, alpha, target, effort.read_largest)
    return (best, residual) if norm <= target else _walk_on(wide, right, (best, residual), alpha, target, effort)


def _walk_on(
    wide: LinearMap, right: Tensor, solution: tuple[Tensor, Tensor], alpha: float, target: float, effort: Effort
) -> tuple[Tensor, Tensor]:
    """Plain walk steps X ← right + αSX, which always contract: for what cycles leave, down to float64's own limit."""
    best, residual = solution
    norm = effort.read_largest(residual)
    while target < norm < math.inf:
        x, left = best, residual
        for _ in range(STEPS_PER_READING):
            x = x + left
            left = right - x + alpha * wide(x)
        new_norm = effort.read_largest(left)
        if not new_norm < norm:
            break  # float64 itself is exhausted
        best, residual, norm = x, left, new_norm
    return best, residual
