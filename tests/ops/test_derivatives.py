"""Every public differentiable function under torch.func and in second order: right, or an error that says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, walk_problem
from tests.ops.test_torch_citizenship import samples
from torch import Tensor

import nerve_kernels as nk

GRID = (2, 3)
Path = tuple[Callable[[Tensor], Tensor], Tensor]


def paths() -> dict[str, Path]:
    """Functions of one tensor, and that tensor: each public function by each input that it has a gradient for."""
    dtype = torch.float64
    q, k = queries_and_keys(0, 1, 2, 6, 6, 4, dtype)
    w = random_weights(1, 1, 2, dtype)
    maps = (q @ k.transpose(-1, -2)).softmax(-1)
    entropy, lse = nk.attention_entropy(q, k, return_lse=True)
    problem = walk_problem(2, GRID, batch=1, affinity_batch=1, dtype=dtype)
    seeds, local, low_rank, mixed = problem.seeds, problem.local, problem.low_rank, problem.mixed(0.5)
    dense = mixed.to_dense()

    def local_of(values: Tensor) -> nk.LocalAffinity:
        return nk.LocalAffinity(values, grid=GRID, window=local.window)

    def low_rank_of(u: Tensor) -> nk.LowRankAffinity:
        return nk.LowRankAffinity(u, grid=GRID, cells=low_rank.cells)

    def walk(seeds: Tensor, affinity: nk.Affinity | Tensor) -> Tensor:
        return nk.random_walk(seeds, affinity, alpha=0.8, steps=5)

    def limit(seeds: Tensor, affinity: nk.Affinity | Tensor) -> Tensor:
        result = nk.random_walk_limit(seeds, affinity, alpha=0.8, tol=1e-10)
        assert isinstance(result, Tensor)
        return result

    return {
        "attention_entropy, q": (lambda x: nk.attention_entropy(x, k), q),
        "attention_entropy, k": (lambda x: nk.attention_entropy(q, x), k),
        "attention_entropy, lse": (lambda x: nk.attention_entropy(x, k, return_lse=True)[1], q),
        "attention_marginal, q": (lambda x: nk.attention_marginal(x, k), q),
        "attention_map_entropy": (nk.attention_map_entropy, maps),
        "fuse_attention, q": (lambda x: nk.fuse_attention(x, k, w), q),
        "fuse_attention, w": (lambda x: nk.fuse_attention(q, k, x, lse=lse), w),
        "fuse_attention_maps": (lambda x: nk.fuse_attention_maps(x, w), maps),
        "local_affinity, q": (lambda x: nk.local_affinity(x, k, w, grid=GRID, window=3).values, q),
        "global_affinity, k": (lambda x: nk.global_affinity(q, x, w, grid=GRID, cells=2).u, k),
        "random_walk, seeds": (lambda x: walk(x, mixed), seeds),
        "random_walk, values": (lambda x: walk(seeds, nk.mix(low_rank, local_of(x), 0.5)), local.values),
        "random_walk, u": (lambda x: walk(seeds, nk.mix(low_rank_of(x), local, 0.5)), low_rank.u),
        "random_walk, dense": (lambda x: walk(seeds, x), dense),
        "random_walk_limit, seeds": (lambda x: limit(x, mixed), seeds),
        "random_walk_limit, dense": (lambda x: limit(seeds, x), dense),
        "local @ P": (lambda x: local @ x, seeds),
        "mixed @ P": (lambda x: mixed @ x, seeds),
        "head_weights": (lambda x: nk.head_weights(x, num_keys=6), entropy),
        "global @ P": (lambda x: low_rank @ x, seeds),
        "to_dense": (lambda x: local_of(x).to_dense(), local.values),
        "from_dense": (lambda x: nk.LocalAffinity.from_dense(x, grid=GRID, window=3).values, dense),
    }


PATHS = paths()
DIRECT = samples(torch.float64, requires_grad=False)
# plain torch has derivatives of every kind
OPERATORS = [name for name in PATHS if name not in ("head_weights", "global @ P", "to_dense", "from_dense")]
FIRST_ORDER_ONLY = [name for name in OPERATORS if name.startswith("random_walk_limit")]
FORWARD = "derivatives in forward mode .* are not implemented; use reverse mode"
SECOND = "random_walk_limit: second derivatives are not implemented; nerve_kernels.reference"


def loss(name: str, weights: Tensor | None = None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    function, at = PATHS[name]

    def value(x: Tensor) -> Tensor:
        result = function(x)
        return (result.square() if weights is None else result * weights).sum()

    return value, at.detach()


def slope(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    return (function(at + 1e-6 * direction) - function(at - 1e-6 * direction)) / 2e-6


@pytest.mark.parametrize("name", PATHS)
def test_forward_mode_is_right_or_refused(name: str) -> None:
    function, at = PATHS[name]
    at, direction = at.detach(), torch.rand(at.shape, generator=torch.Generator().manual_seed(3), dtype=at.dtype)

    def dual() -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            result = function(torch.autograd.forward_ad.make_dual(at, direction))
            tangent = torch.autograd.forward_ad.unpack_dual(result).tangent
            assert tangent is not None
            return tangent

    for derivative in (
        dual,
        lambda: torch.func.jvp(function, (at,), (direction,))[1],
        lambda: torch.einsum("...i,i->...", torch.func.jacfwd(function)(at).flatten(-at.dim()), direction.flatten()),
        lambda: torch.func.vmap(lambda t: torch.func.jvp(function, (at,), (t,))[1])(direction[None])[0],
    ):
        if name in OPERATORS:
            with pytest.raises(RuntimeError, match=f"{FORWARD}|random_walk_limit, but it does not have vmap support"):
                derivative()
        else:
            torch.testing.assert_close(derivative(), slope(function, at, direction), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_torch_func_grad_and_vjp_are_those_of_autograd(name: str) -> None:
    value, at = loss(name)
    x = at.clone().requires_grad_()
    expected = torch.autograd.grad(value(x), x)[0]
    torch.testing.assert_close(torch.func.grad(value)(at), expected)
    function = PATHS[name][0]
    result, pull_back = torch.func.vjp(function, at)
    torch.testing.assert_close(pull_back(2 * result)[0], expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", PATHS)
def test_jacrev_and_gradients_of_each_of_a_batch(name: str) -> None:
    value, at = loss(name)
    function = PATHS[name][0]
    jacobian = torch.func.jacrev(function)(at)
    result = function(at)
    pulled = torch.tensordot(2 * result, jacobian, dims=result.dim())
    torch.testing.assert_close(pulled, torch.func.grad(value)(at))
    if name in FIRST_ORDER_ONLY:  # its certified bound is a number, which vmap refuses
        return
    pair = torch.stack([at, 0.9 * at])
    each = torch.func.vmap(torch.func.grad(value))(pair)
    torch.testing.assert_close(each, torch.stack([torch.func.grad(value)(one) for one in pair]))


@pytest.mark.parametrize("name", PATHS)
def test_second_derivatives_are_right_or_refused(name: str) -> None:
    value, at = loss(name)
    direction = torch.rand(at.shape, generator=torch.Generator().manual_seed(4), dtype=at.dtype)

    def gradient(x: Tensor, create_graph: bool = False) -> Tensor:
        x = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(value(x), x, create_graph=create_graph)[0]

    def twice() -> Tensor:
        x = at.clone().requires_grad_()
        return torch.autograd.grad((gradient(x, create_graph=True) * direction).sum(), x)[0]

    def twice_by_transforms() -> Tensor:
        return torch.func.grad(lambda x: (torch.func.grad(value)(x) * direction).sum())(at)

    for second in (twice, twice_by_transforms):
        if name in FIRST_ORDER_ONLY:
            with pytest.raises(NotImplementedError, match=SECOND):
                second()
        else:
            expected = slope(gradient, at, direction)
            torch.testing.assert_close(second(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_hessian_is_right_or_refused(name: str) -> None:
    value, at = loss(name)
    if name in OPERATORS:
        with pytest.raises(RuntimeError, match=f"{FORWARD}|random_walk_limit, but it does not have vmap support"):
            torch.func.hessian(value)(at)
    else:
        hessian = torch.func.hessian(value)(at).flatten(-at.dim())
        direction = torch.ones_like(at)
        torch.testing.assert_close(hessian.sum(-1), slope(torch.func.grad(value), at, direction), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["random_walk, seeds", "random_walk, values", "attention_entropy, q", "local @ P"])
def test_third_derivatives_are_right(name: str) -> None:
    value, at = loss(name)

    def second(x: Tensor, create_graph: bool = False) -> Tensor:
        x = x if x.requires_grad else x.clone().requires_grad_()
        first = torch.autograd.grad(value(x), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x, create_graph=create_graph)[0]

    x = at.clone().requires_grad_()
    third = torch.autograd.grad(second(x, create_graph=True).sum(), x)[0]
    direction = torch.rand(at.shape, generator=torch.Generator().manual_seed(5), dtype=at.dtype)
    expected = (slope(second, at, direction)).sum()
    torch.testing.assert_close((third * direction).sum(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", None])
def test_second_derivatives_are_those_of_every_backend(backend: str | None) -> None:
    problem = walk_problem(2, GRID, batch=2, affinity_batch=1, dtype=torch.float64)
    seeds, values = problem.seeds.requires_grad_(), problem.local.values.requires_grad_()

    def walk(seeds: Tensor, values: Tensor) -> Tensor:
        local = nk.LocalAffinity(values, grid=GRID, window=problem.local.window)
        return nk.random_walk(seeds, nk.mix(problem.low_rank, local, 0.5), alpha=0.8, steps=4, backend=backend)

    assert torch.autograd.gradgradcheck(walk, (seeds, values))


WITHOUT_DERIVATIVES = (
    "best_labels",
    "nearest_columns",
    "add_transpose",
)  # of indices, or only called without gradients


@pytest.mark.parametrize("name", [name for name in DIRECT if name not in WITHOUT_DERIVATIVES])
def test_an_operator_called_directly_refuses_forward_mode(name: str) -> None:
    """``torch.ops.nerve_kernels.*`` without the public function around it: tangents came out as zeros."""
    first, *others = DIRECT[name]
    tangent = torch.ones_like(first)

    def call(x: Tensor) -> Tensor:
        result = getattr(torch.ops.nerve_kernels, name)(x, *others)
        return result if isinstance(result, Tensor) else result[0]

    for derivative in (
        lambda: torch.func.jvp(call, (first,), (tangent,)),
        lambda: torch.func.vmap(lambda t: torch.func.jvp(call, (first,), (t,))[1])(tangent[None]),
    ):
        with pytest.raises(RuntimeError, match=f"{name}: {FORWARD}"):
            derivative()
