"""Stencils and graphs as affinities: every backend, with and without a global part, against dense matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops.problems import relative_error
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference
from nerve_kernels._operators import walk as operators
from nerve_kernels._operators.walk.conjugate_gradients import iterate
from nerve_kernels.grids import stencil_offsets

BACKENDS = [name for name in nk.available_backends() if name in ("cpp", "eager")]
GRID = (7, 9)
STENCILS: dict[str, dict[str, Any]] = {
    "dilated": {"dilations": (2,)},
    "several dilations": {"dilations": (1, 3)},
    "without the centre": {"centre": False},
    "clamped": {"border": "clamp"},
    "as PAMR has it": {"dilations": (1, 2, 11), "centre": False, "border": "clamp"},
    "oblong": {"window": (1, 5), "dilations": (1, 2), "border": "clamp"},
}
GRAPHS = ("shared", "each its own", "from features")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stencil(name: str, dtype: torch.dtype = torch.float64, batch: int = 2) -> tuple[nk.LocalAffinity, Tensor]:
    """A row-stochastic stencil, but for what lies outside the grid, and its matrix."""
    options = {"window": (3, 3), **STENCILS[name]}
    window = options["window"]
    offsets = stencil_offsets(window, options.get("dilations", (1,)), options.get("centre", True))
    values = torch.rand(batch, GRID[0] * GRID[1], len(offsets), generator=generator(0), dtype=torch.float64)
    affinity = nk.LocalAffinity((values / values.sum(-1, keepdim=True)).to(dtype), grid=GRID, **options)
    clamp = affinity.border == "clamp"
    return affinity, reference.stencil_to_dense(affinity.values, grid=GRID, offsets=offsets, clamp=clamp)


def graph(name: str, dtype: torch.dtype = torch.float64) -> tuple[nk.GraphAffinity, Tensor]:
    """A graph with empty rows and rows of many lengths, and its matrix."""
    tokens, random = GRID[0] * GRID[1], generator(1)
    if name == "from features":
        features = torch.randn(2, tokens, 5, generator=random, dtype=torch.float64)
        affinity = nk.knn_affinity(features, 6).to(dtype)
    else:
        batch = 1 if name == "shared" else 2
        counts = torch.randint(0, 12, (batch, tokens), generator=random)
        counts[:, ::5] = 0
        pointers = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), counts.cumsum(1)], 1)
        entries = int(pointers[:, -1].max())
        columns = torch.randint(0, tokens, (batch, entries), generator=random)
        values = torch.randn(batch, entries, generator=random, dtype=torch.float64) / 8
        affinity = nk.GraphAffinity(pointers, columns, values.to(dtype))
    batch = affinity.shape[0]
    parts = [part.expand(batch, -1) for part in (affinity.row_pointers, affinity.columns, affinity.values)]
    return affinity, torch.stack([reference.graph_to_dense(*image) for image in zip(*parts, strict=True)])


AFFINITIES = [pytest.param(stencil, name, id=name) for name in STENCILS]
AFFINITIES += [pytest.param(graph, name, id=f"graph, {name}") for name in GRAPHS]


def seeds_for(dtype: torch.dtype = torch.float64, labels: int = 5) -> Tensor:
    return torch.rand(2, GRID[0] * GRID[1], labels, generator=generator(2), dtype=torch.float64).to(dtype)


def mixed_with(affinity: Any) -> tuple[nk.MixedAffinity, nk.LowRankAffinity]:
    u = torch.rand(1, GRID[0] * GRID[1], 6, generator=generator(3), dtype=torch.float64).softmax(-1)
    low_rank = nk.LowRankAffinity(u.to(affinity.values.dtype), grid=GRID, cells=(2, 3))
    return nk.mix(low_rank, affinity, 0.4), low_rank


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "name"), AFFINITIES)
def test_walks_agree_with_the_reference(make, name, backend):
    affinity, dense = make(name)
    assert relative_error(affinity.to_dense(), dense) < 1e-14
    mixed, low_rank = mixed_with(affinity)
    both = reference.mix(low_rank.to_dense(), dense, 0.4)
    seeds = seeds_for()
    for alpha in (0.7, 1.0):
        for each, matrix in ((affinity, dense), (mixed, both)):
            expected = reference.random_walk(seeds, matrix, alpha=alpha, steps=3, normalize=False)
            result = nk.random_walk(seeds, each, alpha=alpha, steps=3, normalize=False, backend=backend)
            assert relative_error(result, expected) < 1e-13
    assert relative_error(affinity @ seeds, dense @ seeds) < 1e-13


@pytest.mark.parametrize("labels", [1, 4, 8, 21, 24, 33, 45, 64, 107])
@pytest.mark.parametrize(("make", "name"), [(stencil, "as PAMR has it"), (graph, "each its own")])
def test_every_number_of_labels_and_every_dtype_is_summed_in_float32(make, name, labels):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        affinity, dense = make(name, dtype)
        seeds = seeds_for(dtype, labels)
        expected = reference.random_walk(seeds, dense, alpha=0.9, steps=4, normalize=False)
        for backend in BACKENDS:
            result = nk.random_walk(seeds, affinity, alpha=0.9, steps=4, normalize=False, backend=backend)
            assert result.dtype == dtype
            tolerance = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
            assert relative_error(result, expected) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "name"), AFFINITIES)
def test_gradients_of_seeds_and_values_are_those_of_the_dense_walk(make, name, backend):
    affinity, _ = make(name)
    seeds, values = seeds_for().requires_grad_(), affinity.values.clone().requires_grad_()
    direction = torch.randn(seeds.shape, generator=generator(4), dtype=torch.float64)
    changed = type(affinity)(**{**vars(affinity), "values": values})
    for form in (changed, mixed_with(changed)[0]):
        walked = nk.random_walk(seeds, form, alpha=0.7, steps=5, backend=backend)
        found = torch.autograd.grad((walked * direction).sum(), (seeds, values))
        walked = reference.random_walk(seeds, form.to_dense(), alpha=0.7, steps=5)
        expected = torch.autograd.grad((walked * direction).sum(), (seeds, values))
        for each, other in zip(found, expected, strict=True):
            assert relative_error(each, other) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "name"), AFFINITIES)
def test_limits_and_their_gradients_agree_with_the_reference(make, name, backend):
    affinity, dense = make(name)
    alpha = 0.8 / max(1.0, float(dense.abs().sum(-1).max()))
    seeds, values = seeds_for().requires_grad_(), affinity.values.clone().requires_grad_()
    changed = type(affinity)(**{**vars(affinity), "values": values})
    result, bound = nk.random_walk_limit(seeds, changed, alpha=alpha, tol=1e-9, return_bound=True, backend=backend)
    expected = reference.random_walk_limit(seeds, changed.to_dense(), alpha=alpha)
    assert (result - expected).abs().max() <= bound <= 1e-9
    found = torch.autograd.grad(result.square().sum(), (seeds, values))
    wanted = torch.autograd.grad(expected.square().sum(), (seeds, values))
    for each, other in zip(found, wanted, strict=True):
        assert relative_error(each, other) < 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [40, 400])
def test_the_limit_of_a_symmetric_graph_is_certified_though_rows_sum_to_more_than_one(tokens, backend):
    features = torch.nn.functional.normalize(torch.randn(2, tokens, 6, generator=generator(5)).double(), dim=-1)
    affinity = nk.knn_affinity(features, 7, power=3, normalize="symmetric")
    dense = affinity.to_dense()
    assert dense.sum(-1).max() > 1.05
    seeds = torch.randn(2, tokens, 4, generator=generator(6), dtype=torch.float64).requires_grad_()
    result, bound = nk.random_walk_limit(seeds, affinity, alpha=0.97, tol=1e-8, return_bound=True, backend=backend)
    expected = reference.random_walk_limit(seeds, dense, alpha=0.97)
    assert (result - expected).abs().max() <= bound <= 1e-8
    found, wanted = (torch.autograd.grad(each.square().sum(), seeds)[0] for each in (result, expected))
    assert relative_error(found, wanted) < 1e-7


def test_an_eigenvalue_beyond_one_over_alpha_is_noticed():
    pair = nk.GraphAffinity(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([1.5, 1.5]), symmetric=True)
    with pytest.raises(ValueError, match=r"affinity: expected no eigenvalue beyond 1 in magnitude \(symmetric=True\)"):
        nk.random_walk_limit(torch.rand(2, 2, generator=generator(7)), pair, alpha=0.9)


def test_conjugate_gradients_stop_after_the_iterations_that_were_asked_for():
    matrix = nk.knn_affinity(
        torch.randn(1, 30, 4, generator=generator(8)).double(), 5, normalize="symmetric"
    ).to_dense()
    right = torch.randn(1, 30, 3, generator=generator(9), dtype=torch.float64)
    products: list[int] = []

    def product(p: Tensor) -> Tensor:
        products.append(1)
        return matrix @ p

    few, _ = iterate(product, right, 0.9, 3, 0.0)
    assert len(products) == 3
    many, _ = iterate(product, right, 0.9, 60, 0.0)
    exact = torch.linalg.solve(torch.eye(30).double() - 0.9 * matrix, right)
    assert relative_error(many, exact) < 1e-12 < relative_error(few, exact)


@pytest.mark.parametrize("name", ["dilated", "several dilations", "without the centre"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_outside_the_grid_are_never_read(name, backend):
    affinity, dense = stencil(name)
    _, inside = nk.grids.stencil_neighbours(GRID, affinity.operator_arguments().offsets(), False)
    poisoned = type(affinity)(**{**vars(affinity), "values": torch.where(inside, affinity.values, torch.nan)})
    seeds = seeds_for()
    expected = reference.random_walk(seeds, dense, alpha=0.7, steps=3, normalize=False)
    result = nk.random_walk(seeds, poisoned, alpha=0.7, steps=3, normalize=False, backend=backend)
    assert relative_error(result, expected) < 1e-13


def test_an_index_outside_the_graph_is_refused_by_the_kernel_and_counts_for_nothing_in_plain_torch():
    affinity, _ = graph("shared")
    arguments = affinity.operator_arguments()
    assert arguments.columns is not None
    assert arguments.values is not None
    wrong = arguments.columns.clone()
    wrong[0, 3], wrong[0, 9] = -1, 10**6
    without = arguments.values.clone()
    without[0, 3] = without[0, 9] = 0
    seeds = seeds_for()
    run = torch.ops.nerve_kernels.random_walk
    ignored = run(seeds, *arguments._replace(columns=wrong), 0.9, 2, False, "eager")
    expected = run(seeds, *arguments._replace(values=without), 0.9, 2, False, "eager")
    assert torch.equal(ignored, expected)
    if "cpp" in BACKENDS:
        with pytest.raises(RuntimeError, match="columns: expected tokens from 0 to 62"):
            run(seeds, *arguments._replace(columns=wrong), 0.9, 2, False, "cpp")


@pytest.mark.skipif("cpp" not in BACKENDS, reason="no compiled extension")
@pytest.mark.parametrize(("make", "name"), [(stencil, "as PAMR has it"), (graph, "each its own")])
def test_bits_do_not_depend_on_the_number_of_threads(make, name):
    affinity, _ = make(name, torch.float32)
    seeds, threads = seeds_for(torch.float32, 21), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(nk.random_walk(seeds, affinity, alpha=0.9, steps=9, backend="cpp"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("make", "name"), AFFINITIES)
def test_they_compile_export_and_map(make, name):
    affinity, dense = make(name)
    seeds = seeds_for()
    expected = reference.random_walk(seeds, dense, alpha=0.8, steps=2)

    def walk(seeds: Tensor, affinity: Any) -> Tensor:
        return nk.random_walk(seeds, affinity, alpha=0.8, steps=2)

    torch._dynamo.reset()  # or the cases before would count as recompilations
    compiled = torch.compile(walk, fullgraph=True, backend="eager")
    assert relative_error(compiled(seeds, affinity), expected) < 1e-13
    program = torch.export.export(_Walk(), (seeds, affinity))
    assert relative_error(program.module()(seeds, affinity), expected) < 1e-13
    mapped = torch.vmap(lambda each: walk(each, affinity))(torch.stack([seeds, 2 * seeds]))
    assert relative_error(mapped[1], expected) < 1e-13
    torch.library.opcheck(
        torch.ops.nerve_kernels.random_walk.default,
        (seeds.requires_grad_(), *affinity.operator_arguments(), 0.8, 2, True, None),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


class _Walk(torch.nn.Module):
    def forward(self, seeds: Tensor, affinity: Any) -> Tensor:
        """One walk."""
        result: Tensor = nk.random_walk(seeds, affinity, alpha=0.8, steps=2)
        return result


@pytest.mark.parametrize("normalize", ["row", "symmetric", "none"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nearest_neighbours_are_those_of_the_definition(normalize, symmetric):
    if normalize == "symmetric" and not symmetric:
        pytest.skip("refused: half a graph is not symmetric")
    # whole numbers, so that many inner products are equal
    features = torch.randint(-2, 3, (2, 60, 3), generator=generator(10)).double()
    positions = torch.rand(60, 2, generator=generator(11), dtype=torch.float64)
    options: dict[str, Any] = {"power": 2.0, "distance_scale": 0.7, "distance_power": 2, "positions": positions}
    options |= {"symmetric": symmetric, "normalize": normalize}
    affinity = nk.knn_affinity(features, 8, **options)
    for image, found in zip(features, affinity.to_dense(), strict=True):
        assert relative_error(found, reference.knn_affinity(image, 8, **options)) < 1e-13
    assert (affinity.row_pointers.diff(dim=1) == 0).any() == bool((features.norm(dim=-1) == 0).any())


def test_neighbours_are_found_block_by_block(monkeypatch):
    features = torch.randn(1, 50, 4, generator=generator(12), dtype=torch.float64)
    whole = nk.knn_affinity(features, 50).to_dense()
    monkeypatch.setattr("nerve_kernels.affinity.nearest_neighbours.BLOCK_NUMBERS", 3 * 50)
    monkeypatch.setattr("nerve_kernels._operators.walk.graph.BLOCK_NUMBERS", 100)
    blocks = nk.knn_affinity(features, 50)
    assert relative_error(blocks.to_dense(), whole) < 1e-13
    seeds = torch.rand(1, 50, 7, generator=generator(13), dtype=torch.float64)
    result = nk.random_walk(seeds, blocks, alpha=0.9, steps=3, backend="eager")
    assert relative_error(result, reference.random_walk(seeds, whole, alpha=0.9, steps=3)) < 1e-13


@pytest.mark.skipif(not _native.extension_loaded(), reason="no extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_neighbours_and_their_transpose_are_the_same_on_both_backends(dtype):
    products = torch.randint(-3, 4, (70, 70), generator=generator(20)).to(dtype)  # most of them equal to others
    products[:, 3] = -0.0
    products[5, ::4] = torch.nan
    for k in (1, 7, 69, 70):
        columns = operators.nearest_columns(products, k, "eager")
        assert torch.equal(operators.nearest_columns(products, k, "cpp"), columns)
        weights = torch.rand(70, k, generator=generator(21)).to(dtype)
        weights[weights < 0.3] = 0
        weights[9] = 0
        for one, other in zip(
            operators.add_transpose(columns, weights, "eager"),
            operators.add_transpose(columns, weights, "cpp"),
            strict=True,
        ):
            assert torch.equal(one, other)


def test_gradients_of_features_go_through_the_weights():
    features = torch.randn(1, 12, 4, generator=generator(14), dtype=torch.float64, requires_grad=True)

    def walk(features: Tensor) -> Tensor:
        seeds = torch.eye(12, dtype=torch.float64)[:, :3]
        return nk.random_walk(seeds, nk.knn_affinity(features, 4), alpha=0.8, steps=3)

    assert torch.autograd.gradcheck(walk, (features,), eps=1e-7)
