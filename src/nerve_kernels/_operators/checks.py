"""Argument checks: bad input is refused before any kernel starts, by name, with what came and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nerve_kernels.grids import Grid

MAX_COUNT = 2**63 - 1
MAX_FLOAT32 = torch.finfo(torch.float32).max
MIN_NORMAL_FLOAT32 = torch.finfo(torch.float32).tiny
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def shape_of(tensor: Tensor) -> str:
    """A shape as people write it: (1, 8, 4096, 40)."""
    return "(" + ", ".join(str(size) for size in tensor.shape) + ("," if tensor.dim() == 1 else "") + ")"


def check_tensor(name: str, value: Any, dimensions: int, wanted: str) -> Tensor:
    """``value`` as a real floating-point tensor with that many dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor {wanted}, got {type(value).__name__}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {value.dtype}; convert it first")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}; convert it with {name}.to_dense()")
    if value.dim() != dimensions:
        raise ValueError(f"{name}: expected shape {wanted}, got {shape_of(value)}")
    return value


def check_layers(name: str, value: Any, wanted: str = "a tensor, or a list of them, one for each layer") -> list[Any]:
    """What came for several layers, as a list."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    return list(value)


def check_flag(name: str, value: Any) -> bool:
    """``value`` as True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return value


def check_backend(backend: Any) -> None:
    """Raise where ``backend`` cannot be a name; whether there is one of that name, the operator knows."""
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend: expected a name such as 'cpp', or None for the best, got {type(backend).__name__}")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], wanted: str) -> None:
    """Raise where ``tensor`` has not exactly ``shape``."""
    if tensor.dim() != len(shape) or any(have != want for have, want in zip(tensor.shape, shape, strict=True)):
        expected = "(" + ", ".join(str(size) for size in shape) + ")"
        raise ValueError(f"{name}: expected {wanted} = {expected}, got {shape_of(tensor)}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise where tensors lie on different devices."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(present.items()))
    for name, tensor in present.items():
        if tensor.device != first.device:
            raise ValueError(
                f"{name}: expected to be on {first.device} as {first_name} is, got {tensor.device}; "
                f"move it with {name}.to({str(first.device)!r})"
            )


def check_number(name: str, value: Any, *, low: float, high: float, wanted: str, high_open: bool = False) -> float:
    """``value`` as a finite float in [low, high], or [low, high) with ``high_open``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number {wanted}, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond every float
        number = math.inf
    if not math.isfinite(number) or number < low or number > high or (high_open and number == high):
        raise ValueError(f"{name}: expected a number {wanted}, got {number}")
    return number


def check_count(name: str, value: Any, *, low: int, wanted: str) -> int:
    """``value`` as an int ≥ ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int {wanted}, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name}: expected an int {wanted}, got {value}")
    if isinstance(value, int) and value > MAX_COUNT:
        raise ValueError(f"{name}: expected an int {wanted} and below 2⁶³, got one of {value.bit_length()} bits")
    return value  # type: ignore[return-value]


def check_scale(scale: float | None, dimension: int) -> float:
    """The score scale: 1/√d where none is given."""
    if scale is None:
        return float(dimension) ** -0.5
    return check_number("scale", scale, low=-MAX_FLOAT32, high=MAX_FLOAT32, wanted="that float32 can hold")


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(isinstance(item, (int, torch.SymInt)) and not isinstance(item, bool) for item in value)
    )


def check_grid(name: str, grid: Any) -> Grid:
    """A token grid as a pair (H, W) of positive ints."""
    if not _is_pair(grid):
        raise TypeError(f"{name}: expected a pair of ints (H, W), got {grid!r}")
    if grid[0] < 1 or grid[1] < 1:
        raise ValueError(f"{name}: expected H ≥ 1 and W ≥ 1, got {tuple(grid)}")
    return grid[0], grid[1]


def check_tokens(name: str, grid: Grid, tokens: int, what: str) -> None:
    """Raise where a grid does not hold as many tokens as a tensor has."""
    if grid[0] * grid[1] != tokens:
        raise ValueError(
            f"{name}: {grid[0]} × {grid[1]} = {grid[0] * grid[1]} tokens do not match {what}, which has {tokens}"
        )


def check_window(window: Any, grid: Grid) -> Grid:
    """A window as a pair of odd ints, each at most 2 · side − 1."""
    pair = (window, window) if isinstance(window, int) and not isinstance(window, bool) else window
    if not _is_pair(pair):
        raise TypeError(f"window: expected an odd int or a pair of odd ints, got {window!r}")
    for side, length in zip(pair, grid, strict=True):
        if side < 1 or side % 2 == 0:
            raise ValueError(f"window: expected odd sizes ≥ 1, so that a token is at the centre, got {window!r}")
        if side > 2 * length - 1:
            raise ValueError(
                f"window: expected at most 2 · side − 1 = {2 * length - 1} for a grid side of {length}, got {side}; "
                "a larger window would reach no further token"
            )
    return pair[0], pair[1]


def check_cells(cells: Any, grid: Grid) -> Grid:
    """Cells as a pair of ints, at most one per token along each side."""
    pair = (cells, cells) if isinstance(cells, int) and not isinstance(cells, bool) else cells
    if not _is_pair(pair):
        raise TypeError(f"cells: expected an int or a pair of ints (h, w), got {cells!r}")
    for count, length in zip(pair, grid, strict=True):
        if count < 1 or count > length:
            raise ValueError(
                f"cells: expected 1 to {length} cells along a grid side of {length} tokens, got {cells!r}; "
                "a cell needs at least one token"
            )
    return pair[0], pair[1]


def check_queries_and_keys(q: Any, k: Any, prefix: str = "") -> None:
    """q (B, heads, N, d) and k (B, heads, N_k, d) that belong together, with at least one key."""
    check_tensor(f"{prefix}q", q, 4, "(B, heads, N, d)")
    check_tensor(f"{prefix}k", k, 4, "(B, heads, N_k, d)")
    if q.dtype != k.dtype:
        raise TypeError(f"{prefix}k: expected the dtype of q, {q.dtype}, got {k.dtype}")
    if q.shape[0] != k.shape[0] or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"{prefix}k: expected batch, heads and head size of q {shape_of(q)}, got {shape_of(k)}; only the number of "
            "tokens (dimension 2) may differ"
        )
    if k.shape[2] < 1 or q.shape[3] < 1:
        raise ValueError(f"{prefix}k: expected at least one key and a head size ≥ 1, got {shape_of(k)}")
    check_same_device(q=q, k=k)


def check_head_weights(w: Any, q: Tensor, prefix: str = "") -> None:
    """w (B, heads) that belongs to q."""
    check_tensor(f"{prefix}w", w, 2, "(B, heads)")
    check_shape(f"{prefix}w", w, q.shape[:2], "(B, heads) of q")
    check_same_device(q=q, w=w)


def check_lse(lse: Any, q: Tensor, prefix: str = "") -> None:
    """lse (B, heads, N) in float32 or float64 that belongs to q."""
    check_tensor(f"{prefix}lse", lse, 3, "(B, heads, N)")
    check_shape(f"{prefix}lse", lse, q.shape[:3], "(B, heads, N) of q")
    if lse.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{prefix}lse: expected float32 or float64 as attention_entropy returns it, got {lse.dtype}")
    check_same_device(q=q, lse=lse)
