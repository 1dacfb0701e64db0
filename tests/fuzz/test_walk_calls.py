"""Random calls of stage 3, right and wrong, against the reference."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.judging import FUZZ, backends, dtypes, judge, probabilities, spoilt
from tests.fuzz.test_affinity_calls import cells_for, grids, pair, window_for

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.walk import steps_for_tolerance


@st.composite
def affinities(draw: st.DrawFn, grid: tuple[int, int], dtype: torch.dtype, batch: int) -> tuple[Any, torch.Tensor]:
    """A row-stochastic affinity of any kind, and the same in dense float64 as it is stored."""
    tokens = grid[0] * grid[1]
    kind = draw(st.sampled_from(["local", "low rank", "mixed", "dense"]))
    matrix = probabilities(draw, (batch, tokens, tokens), torch.float64)
    if kind == "dense":
        return matrix.to(dtype), matrix.to(dtype).double()
    near = nk.LocalAffinity.from_dense(matrix, grid=grid, window=pair(draw(window_for(grid)))).to(dtype)
    far = nk.LowRankAffinity.from_dense(matrix, grid=grid, cells=pair(draw(cells_for(grid)))).to(dtype)
    affinity = {"local": near, "low rank": far, "mixed": nk.mix(far, near, draw(st.floats(0, 1)))}[kind]
    return affinity, affinity.to(torch.float64).to_dense()


@st.composite
def walk_calls(draw: st.DrawFn) -> tuple[dict[str, Any], torch.Tensor, bool, torch.dtype]:
    dtype, grid, batch = draw(dtypes), draw(grids), draw(st.integers(1, 2))
    affinity, dense = draw(affinities(grid, dtype, draw(st.sampled_from([1, batch]))))
    seeds = probabilities(draw, (batch, grid[0] * grid[1], draw(st.integers(2, 7))), dtype)
    if batch == 1 and draw(st.booleans()):
        seeds = seeds[0]
    arguments: dict[str, Any] = {
        "seeds": seeds,
        "affinity": affinity,
        "alpha": draw(st.floats(0, 0.95)),
        "backend": draw(backends),
    }
    return arguments, dense, False, dtype


def dense_of(arguments: dict[str, Any], dense: torch.Tensor) -> torch.Tensor:
    """The affinity of the call: what was drawn, or the tensor put in its place."""
    affinity = arguments["affinity"]
    return affinity.double() if isinstance(affinity, torch.Tensor) else dense


def batched(arguments: dict[str, Any]) -> torch.Tensor:
    seeds = arguments["seeds"]
    return seeds[None] if seeds.dim() == 2 else seeds


def shaped(result: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    return result[0] if arguments["seeds"].dim() == 2 else result


@FUZZ
@given(walk_calls(), st.data())
def test_random_walk(call, data):
    arguments, dense, _, dtype = call
    if data.draw(st.booleans()):
        arguments |= {"steps": data.draw(st.integers(0, 30)), "tol": None}
    else:
        arguments |= {"steps": None, "tol": data.draw(st.floats(1e-6, 2))}
    arguments |= {"normalize": data.draw(st.booleans()), "check": data.draw(st.booleans())}
    wrong = spoilt(data.draw, arguments)
    if isinstance(arguments["steps"], int) and 10**6 < arguments["steps"] < 2**63:
        arguments["steps"] = 31  # would be right, and would take years

    def expected() -> torch.Tensor:
        tol = arguments["tol"]
        steps = arguments["steps"] if tol is None else steps_for_tolerance(arguments["alpha"], tol)
        options = {"alpha": arguments["alpha"], "steps": steps, "normalize": arguments["normalize"]}
        return shaped(reference.random_walk(batched(arguments), dense_of(arguments, dense), **options), arguments)

    judge(arguments, lambda: nk.random_walk(**arguments), expected, spoilt=wrong, dtype=dtype)


@FUZZ
@given(walk_calls(), st.data())
def test_random_walk_limit(call, data):
    arguments, dense, _, dtype = call
    arguments["tol"] = data.draw(st.sampled_from([1e-9, 1e-6, 1e-2]))
    wrong = spoilt(data.draw, arguments)

    def limit() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where tol is below what the dtype can hold
            result, bound = nk.random_walk_limit(**arguments, return_bound=True)
        exact = expected()
        # the certificate is what this function promises
        assert (result.double() - exact).abs().max() <= bound * (1 + 1e-9) + 1e-12
        return result if bound <= 1e-5 else exact

    def expected() -> torch.Tensor:
        solution = reference.random_walk_limit(arguments["seeds"], dense_of(arguments, dense), alpha=arguments["alpha"])
        return shaped(solution, arguments)

    judge(arguments, limit, expected, spoilt=wrong, dtype=dtype)


@FUZZ
@given(st.floats(0, 0.999), st.floats(1e-300, 10), st.data())
def test_steps_for_tolerance(alpha, tol, data):
    arguments: dict[str, Any] = {"alpha": alpha, "tol": tol}
    wrong = spoilt(data.draw, arguments)
    try:
        steps = steps_for_tolerance(**arguments)
    except (ValueError, TypeError) as error:
        assert wrong
        assert str(error).startswith(("alpha: ", "tol: "))
        return
    if arguments["alpha"] > 0 and arguments["tol"] < 1:
        assert arguments["alpha"] ** steps <= arguments["tol"] * (1 + 1e-9)
        assert arguments["alpha"] ** (steps - 1) > arguments["tol"] * (1 - 1e-9)
    else:
        assert steps == 0
