"""Rows of P as kernels that gather them take them: of any length, in the widest pieces that it allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_kernels._triton.launch import VECTOR_BYTES

from .walk_step import batch_stride

ROW_UNIT = 4
"""Labels that rows of P are filled up to a multiple of: 16 bytes, one load of a thread."""


@triton.jit
def normalized(total):
    """Rows divided by their sums; a row that sums to 0 as it is."""
    mass = tl.sum(total, 1)[:, None]
    return total / tl.where(mass == 0, 1.0, mass)


@triton.jit
def row_places(label, units, ALIGN: tl.constexpr):
    """Where labels are in a row of so many units; those beyond it read the last unit again, which needs no mask."""
    places = tl.minimum(label // ALIGN, units - 1) * ALIGN + label % ALIGN
    return tl.max_contiguous(tl.multiple_of(places, ALIGN), ALIGN)


def padded_rows(size: Sequence[int], device: torch.device) -> Tensor:
    """Float32 of this size, whose rows, of the last axis, begin at multiples of 16 bytes."""
    *axes, columns = size
    pitch = -(-columns // ROW_UNIT) * ROW_UNIT
    return torch.empty((*axes, pitch), dtype=torch.float32, device=device)[..., :columns]


def label_block(pitch: int) -> int:
    """Labels of one program: no dots here, which would want 16."""
    return max(4, min(64, triton.next_power_of_2(pitch)))


def row_layout(**tensors: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Strides of (B, N, C) tensors whose labels are next to each other, and the widest units that rows are made of."""
    arguments: dict[str, int] = {}
    constants: dict[str, int] = {}
    for name, tensor in tensors.items():
        align = math.gcd(tensor.stride(1), VECTOR_BYTES // tensor.element_size())
        arguments |= {f"{name}_batch": batch_stride(tensor), f"{name}_units": tensor.stride(1) // align}
        constants[f"{name}_align".upper()] = align
    return arguments, constants
