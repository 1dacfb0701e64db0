"""How random calls of an operator are made and judged: right to rounding, or refused by the name of an argument."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

import nerve_kernels as nk

# The same examples on every run. `make fuzz` asks for thousands of each test, `make test` for a few.
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ROUNDING = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from(DTYPES)
backends = st.sampled_from([name for name in nk.available_backends() if name != "triton"] + [None])
small = st.integers(1, 5)

HOSTILE: tuple[Any, ...] = (
    None, True, "cat", b"ab", "", 0, -1, 1, 2, 4, 10**30, -(10**30), 10**400, 2**31, 2**63, 0.0, 0.5, -0.5, 1.0, 1.5,
    math.nan, math.inf, -math.inf, 1e308, 1e-320, 1j, [], [1], (), (0, 0), (1, 1), (3, 3), (-1, 2), (2**40, 2**40),
    (1.0, 2.0), ("a", "b"), (1, 2, 3), {}, {"a": 1}, object(), int, torch.float32, torch.Size([2, 3]),
)  # fmt: skip


def hostile_tensors() -> tuple[Tensor, ...]:
    """Tensors that hardly ever fit."""
    return (
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(3),
        torch.zeros(2, 3),
        torch.zeros(1, 4, 2),
        torch.zeros(0, 4, 2),
        torch.zeros(1, 1, 4, 2),
        torch.zeros(1, 1, 0, 2),
        torch.zeros(1, 0, 4, 2),
        torch.zeros(1, 1, 4, 0),
        torch.zeros(1, 1, 1, 1, 1),
        torch.zeros(1, 1, 4, 2, dtype=torch.int64),
        torch.zeros(1, 1, 4, 2, dtype=torch.bool),
        torch.zeros(1, 4, 2, dtype=torch.complex64),
        torch.zeros(1, 1, 4, 2, device="meta"),
        torch.zeros(1, 4, 2, device="meta"),
        torch.zeros(1, 4, 4).to_sparse(),
        torch.zeros(1, 1, 4, 2).to_sparse(),
    )


hostile = st.one_of(st.sampled_from(HOSTILE), st.sampled_from(hostile_tensors()))


def spoilt(draw: st.DrawFn, arguments: dict[str, Any], keep: Sequence[str] = ()) -> bool:
    """Put something hostile in the place of none, one or two arguments; whether that was done."""
    names = [name for name in arguments if name not in keep]
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    for name in chosen:
        value = draw(hostile)
        if isinstance(arguments[name], list) and arguments[name] and draw(st.booleans()):
            changed = list(arguments[name])
            changed[draw(st.integers(0, len(changed) - 1))] = value
            arguments[name] = changed
        else:
            arguments[name] = value
    return bool(chosen)


def tensor(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype, *, magnitude: float = 1.0) -> Tensor:
    """Normal numbers, in one of several memory layouts."""
    generator = torch.Generator().manual_seed(draw(seeds))
    values = (magnitude * torch.randn(tuple(shape), generator=generator, dtype=torch.float64)).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "transposed", "every other", "offset"]))
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "every other":
        wide = values.new_zeros((*values.shape[:-1], 2 * values.shape[-1]))
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "offset":
        return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)
    return values


def probabilities(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rows that sum to 1, to the rounding of the dtype."""
    return tensor(draw, shape, torch.float64).softmax(-1).to(dtype)


def assert_close(result: Any, expected: Any, dtype: torch.dtype) -> None:
    """Equal to the rounding of ``dtype``; NaN where NaN is expected, and nowhere else."""
    if isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            assert_close(one, other, dtype)
        return
    assert tuple(result.shape) == tuple(expected.shape)
    if result.device.type == "meta":
        return
    wide, wanted = result.detach().double(), expected.detach().double()
    rounding = ROUNDING[dtype]
    assert torch.equal(wide.isnan(), wanted.isnan())
    excess = ((wide - wanted).abs() - rounding - rounding * wanted.abs()).nan_to_num(-1.0)
    assert (excess <= 0).all(), f"off by {excess.max().item() + rounding:.3g}, allowed about {rounding:.3g}"


def judge(
    arguments: dict[str, Any], call: Callable[[], Any], expected: Callable[[], Any], *, spoilt: bool, dtype: torch.dtype
) -> None:
    """A call either gives what the reference gives or raises ValueError or TypeError with an argument's name.

    Whatever has not been spoilt must not be refused; nothing may warn of a fault, and nothing else may be raised.
    """
    try:
        result = call()
    except nk.BackendUnavailableError as error:
        assert spoilt
        assert "backend=" in str(error)
        return
    except (ValueError, TypeError) as error:
        assert spoilt, f"refused without a cause: {error}"
        named = re.match(r"(?:layer \d+: )?([\w, ]+)(?:\[\d+\])?: .", str(error))
        assert named, f"names no argument: {error}"
        assert set(named[1].split(", ")) & {*arguments, "P", "first_layer"}, f"names no argument of this: {error}"
        return
    assert_close(result, expected(), dtype)
