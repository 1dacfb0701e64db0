"""Argument checks, for every layer of the package: what does not fit is refused before any work, by name.

Every message reads ``name: expected X, got Y; do Z``, where ``do Z`` is left out if X already says it. A value of
another type is a ``TypeError``, one out of range a ``ValueError``; what fits is returned, as the type that it was
checked for. A check of one plain value is called ``check_…(name, value, …)``, so that a table of fields can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from nerve_kernels.grids import Grid

T = TypeVar("T")

MAX_COUNT = 2**63 - 1
MAX_FLOAT32 = torch.finfo(torch.float32).max
MIN_NORMAL_FLOAT32 = torch.finfo(torch.float32).tiny
ONE_OR_MANY = "a tensor, or a list of them, one for each layer"
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def refusal(name: str, expected: str, got: object, do: str = "") -> str:
    """The one form of a message: ``name: expected X, got Y; do Z``."""
    return f"{name}: expected {expected}, got {got}" + (f"; {do}" if do else "")


def kind_of(value: Any) -> str:
    """A value of the wrong type, as a message names it: by its type."""
    return type(value).__name__


# Plain values


def check_flag(name: str, value: Any) -> bool:
    """``value`` as True or False; 0, 1 and None are neither."""
    if not isinstance(value, bool):
        raise TypeError(refusal(name, "True or False", kind_of(value)))
    return value


def check_text(name: str, value: Any, wanted: str = "a text") -> str:
    """``value`` as a string that is not blank."""
    if not isinstance(value, str):
        raise TypeError(refusal(name, wanted, kind_of(value)))
    if not value.strip():
        raise ValueError(refusal(name, wanted, repr(value)))
    return value


def check_choice(name: str, value: Any, choices: Iterable[str], do: str = "") -> str:
    """``value`` as one of a few words."""
    known = tuple(choices)
    if value not in known or not isinstance(value, str):
        *most, last = (repr(choice) for choice in known)
        raise ValueError(refusal(name, f"{', '.join(most)} or {last}" if most else last, repr(value), do))
    return value


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    wanted: str,
    low_open: bool = False,
    high_open: bool = False,
    do: str = "",
) -> float:
    """``value`` as a finite float from ``low`` to ``high``; an open end does not belong to them."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(refusal(name, f"a number {wanted}", kind_of(value), do))
    try:
        number = float(value)
    except OverflowError:  # an int beyond every float
        number = math.inf
    outside = number < low or number > high or (low_open and number == low) or (high_open and number == high)
    if not math.isfinite(number) or outside:
        raise ValueError(refusal(name, f"a number {wanted}", number, do))
    return number


def check_count(name: str, value: Any, *, low: int = 0, high: int | None = None, wanted: str = "", do: str = "") -> int:
    """``value`` as an int from ``low`` to ``high``; ``wanted`` says it where "≥ low" would not do."""
    wanted = f"an int {wanted or (f'≥ {low}' if high is None else f'from {low} to {high}')}"
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(refusal(name, wanted, kind_of(value), do))
    if value < low or (high is not None and value > high):
        raise ValueError(refusal(name, wanted, _short(value), do))
    if isinstance(value, int) and value > MAX_COUNT:
        raise ValueError(refusal(name, f"{wanted} and below 2⁶³", _short(value), do))
    return value  # type: ignore[return-value]


def _short(value: int | torch.SymInt) -> str:
    """An int as text, or how long it is: Python refuses to print the longest."""
    return f"one of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > MAX_COUNT else str(value)


def check_pair(name: str, value: Any, wanted: str, *, or_one: bool = False) -> Grid:
    """``value`` as a pair of ints, of any size; with ``or_one`` a single int stands for two of it."""
    pair = (value, value) if or_one and _is_int(value) else value
    if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
        raise TypeError(refusal(name, wanted, repr(value)))
    if not all(_is_int(item) for item in pair):
        raise TypeError(refusal(name, wanted, repr(value)))
    return pair[0], pair[1]


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def check_list(name: str, value: Any, wanted: str, *, length: int | None = None) -> list[Any]:
    """``value``, any sequence but a text, as a list; of ``length`` items where that is given."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(refusal(name, wanted, kind_of(value)))
    if length is not None and len(value) != length:
        raise ValueError(refusal(name, wanted, len(value)))
    return list(value)


def check_type(name: str, value: Any, kind: type[T] | tuple[type[T], ...], wanted: str = "") -> T:
    """``value`` as an instance of a class, or of one of several, which ``wanted`` names."""
    if not isinstance(value, kind):
        raise TypeError(refusal(name, wanted or f"a {getattr(kind, '__name__', kind)}", kind_of(value)))
    return value


def check_optional(check: Callable[..., T], name: str, value: Any, **options: Any) -> T | None:
    """None, or what another check of a plain value accepts."""
    return None if value is None else check(name, value, **options)


def check_backend(backend: Any) -> None:
    """Raise where ``backend`` cannot be a name; whether there is one of that name, the operator knows."""
    if backend is not None and not isinstance(backend, str):
        raise TypeError(refusal("backend", "a name such as 'cpp', or None for the best", kind_of(backend)))


# Tensors


def shape_of(tensor: Tensor) -> str:
    """A shape as people write it: (1, 8, 4096, 40)."""
    return "(" + ", ".join(str(size) for size in tensor.shape) + ("," if tensor.dim() == 1 else "") + ")"


def check_tensor(name: str, value: Any, dimensions: int, wanted: str) -> Tensor:
    """``value`` as a real floating-point tensor with that many dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(refusal(name, f"a torch.Tensor {wanted}", kind_of(value)))
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(refusal(name, "float32, float16, bfloat16 or float64", value.dtype, "convert it first"))
    if value.layout != torch.strided:
        raise TypeError(refusal(name, "a dense tensor", value.layout, f"convert it with {name}.to_dense()"))
    if value.dim() != dimensions:
        raise ValueError(refusal(name, f"shape {wanted}", shape_of(value)))
    return value


def check_index_tensor(name: str, value: Any, dimensions: int, wanted: str) -> Tensor:
    """``value`` as a tensor of int32 or int64 with that many dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(refusal(name, f"a torch.Tensor {wanted}", kind_of(value)))
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(refusal(name, "int32 or int64", value.dtype))
    if value.dim() != dimensions:
        raise ValueError(refusal(name, f"shape {wanted}", shape_of(value)))
    return value


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], wanted: str) -> None:
    """Raise where ``tensor`` has not exactly ``shape``."""
    if tensor.dim() != len(shape) or any(have != want for have, want in zip(tensor.shape, shape, strict=True)):
        expected = "(" + ", ".join(str(size) for size in shape) + ")"
        raise ValueError(refusal(name, f"{wanted} = {expected}", shape_of(tensor)))


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise where tensors, given by their names, lie on different devices."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(present.items()))
    for name, tensor in present.items():
        if tensor.device != first.device:
            move = f"move it with {name}.to({str(first.device)!r})"
            raise ValueError(refusal(name, f"to be on {first.device} as {first_name} is", tensor.device, move))


def check_batch(name: str, batch: int, wanted: int, of: str = "") -> None:
    """Raise where a batch is not the ``wanted`` one (``of`` says whose that is), and neither of the two is 1."""
    if batch != wanted and 1 not in (batch, wanted):
        raise ValueError(refusal(name, f"a batch of {wanted} or 1{of}", batch))


# Token grids


def check_grid(name: str, grid: Any) -> Grid:
    """A token grid as a pair (H, W) of positive ints."""
    pair = check_pair(name, grid, "a pair of ints (H, W)")
    if pair[0] < 1 or pair[1] < 1:
        raise ValueError(refusal(name, "H ≥ 1 and W ≥ 1", pair))
    return pair


def check_tokens(name: str, grid: Sequence[int], tokens: int, what: str) -> None:
    """Raise where a grid does not hold as many tokens as ``what`` has."""
    if grid[0] * grid[1] != tokens:
        count = f"{grid[0]} × {grid[1]} = {grid[0] * grid[1]}"
        raise ValueError(refusal(name, f"H · W = {tokens} tokens as {what} has", count))


def check_window(window: Any, grid: Grid, *, bounded: bool = True) -> Grid:
    """A window as a pair of odd ints, each at most 2 · side − 1 where it is ``bounded``."""
    pair = check_pair("window", window, "an odd int or a pair of odd ints", or_one=True)
    for side, length in zip(pair, grid, strict=True):
        if side < 1 or side % 2 == 0:
            raise ValueError(refusal("window", "odd sizes ≥ 1, so that a token is at the centre", repr(window)))
        if bounded and side > 2 * length - 1:
            most = f"at most 2 · side − 1 = {2 * length - 1} for a grid side of {length}"
            raise ValueError(refusal("window", most, side, "a larger window would reach no further token"))
    return pair


def check_dilations(dilations: Any, window: Grid, grid: Grid, *, clamp: bool) -> tuple[int, ...]:
    """Dilations as ints ≥ 1, unlike each other; without ``clamp`` none that leads past the grid from every token."""
    found = tuple(check_list("dilations", dilations, "ints ≥ 1, one for each window"))
    if not found:
        raise ValueError(refusal("dilations", "at least one", found))
    for place, dilation in enumerate(found):
        check_count(f"dilations[{place}]", dilation, low=1)
        for side, length in zip(window, grid, strict=True):
            if not clamp and dilation * (side // 2) > max(length - 1, 0):
                most = (
                    f"at most {max(1, (length - 1) // (side // 2))} for a window of {side} on a grid side of {length}"
                )
                do = "a larger one would reach no token; leave it out or give border='clamp'"
                raise ValueError(refusal(f"dilations[{place}]", most, dilation, do))
    if len(set(found)) != len(found):
        raise ValueError(refusal("dilations", "each of them once", found))
    return found


def check_cells(cells: Any, grid: Grid) -> Grid:
    """Cells as a pair of ints, at most one per token along each side."""
    pair = check_pair("cells", cells, "an int or a pair of ints (h, w)", or_one=True)
    for count, length in zip(pair, grid, strict=True):
        if count < 1 or count > length:
            wanted = f"1 to {length} cells along a grid side of {length} tokens"
            raise ValueError(refusal("cells", wanted, repr(cells), "a cell needs at least one token"))
    return pair


# What belongs to q


def check_scale(scale: float | None, dimension: int) -> float:
    """The score scale: 1/√d where none is given."""
    if scale is None:
        return float(dimension) ** -0.5
    return check_number("scale", scale, low=-MAX_FLOAT32, high=MAX_FLOAT32, wanted="that float32 can hold")


def check_queries_and_keys(q: Any, k: Any, prefix: str = "") -> None:
    """q (B, heads, N, d) and k (B, heads, N_k, d) that belong together, with at least one key."""
    check_tensor(f"{prefix}q", q, 4, "(B, heads, N, d)")
    name = f"{prefix}k"
    check_tensor(name, k, 4, "(B, heads, N_k, d)")
    if q.dtype != k.dtype:
        raise TypeError(refusal(name, f"the dtype of q, {q.dtype}", k.dtype))
    if q.shape[0] != k.shape[0] or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        only = "only the number of tokens (dimension 2) may differ"
        raise ValueError(refusal(name, f"batch, heads and head size of q {shape_of(q)}", shape_of(k), only))
    if k.shape[2] < 1 or q.shape[3] < 1:
        raise ValueError(refusal(name, "at least one key and a head size ≥ 1", shape_of(k)))
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
        wanted = "float32 or float64 as attention_entropy returns it"
        raise TypeError(refusal(f"{prefix}lse", wanted, lse.dtype))
    check_same_device(q=q, lse=lse)
