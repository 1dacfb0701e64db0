"""Operators as torch expects them: opcheck, compile, export, autocast, vmap, meta tensors, memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.ops.problems import queries_and_keys, random_weights, walk_problem

import nerve_kernels as nk
from nerve_kernels.grids import cell_of_token, window_neighbours

OPERATORS = torch.ops.nerve_kernels


def samples(dtype: torch.dtype, *, requires_grad: bool) -> dict[str, tuple[Any, ...]]:
    """Arguments for each operator, one of them with permuted memory."""
    q, k = queries_and_keys(0, 2, 2, 12, 12, 4, dtype)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    w = random_weights(1, 2, 2, dtype)
    lse = nk.attention_entropy(q, k, return_lse=True)[1].detach()
    maps = (q @ k.transpose(-1, -2)).softmax(-1)
    problem = walk_problem(2, (3, 4), batch=2, affinity_batch=1, dtype=dtype)
    walk = problem.mixed(0.5).operator_arguments()
    tensors = [q, k, w, lse, maps, problem.seeds, problem.local.values, problem.low_rank.u]
    if requires_grad:
        for tensor in tensors:
            tensor.requires_grad_()
    return {
        "attention_entropy": (q, k, 0.5),
        "attention_marginal": (q, k, lse, 0.5),
        "attention_map_entropy": (maps,),
        "attention_statistics": (q, k, (3, 4), (3, 3), (2, 2), 0.5, 2.0, False),
        "cliper": (q.detach(), k.detach(), problem.seeds.detach(), 0.5, 0.1),
        "fuse_attention": (q, k, w, lse, 0.5),
        "fuse_attention_maps": (maps, w),
        "local_affinity": (q, k, w, lse, (3, 4), (3, 3), 0.5, True),
        "global_affinity": (q, k, w, lse, (3, 4), (2, 2), 0.5),
        "nearest_columns": (maps[0, 0].detach(), 5),
        "add_transpose": (torch.tensor([[1, 2], [0, 2], [0, 1]], dtype=torch.int32), maps[0, 0, :3, :2].detach()),
        "window_product": (problem.local.values, problem.seeds, (3, 4), (3, 3)),
        "random_walk": (problem.seeds, *walk, 0.8, 3, True),
        "best_labels": (maps.detach(), 7, 9, 0.1, -1),
        "random_walk_limit": (problem.seeds, *walk, 0.8, 1e-9 if dtype == torch.float64 else 1e-5),
    }


NAMES = list(samples(torch.float32, requires_grad=False))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["float32", "float64 with gradient"])
def test_opcheck(name, kind):
    requires_grad = kind != "float32"
    arguments = samples(torch.float64 if requires_grad else torch.float32, requires_grad=requires_grad)[name]
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments)


def walk_with_defaults(seeds: torch.Tensor, affinity: nk.MixedAffinity) -> torch.Tensor:
    return nk.random_walk(seeds, affinity, alpha=0.9, steps=6)


def test_the_walk_compiles_whole():
    problem = walk_problem(3, (6, 8), dtype=torch.float32)
    mixed = problem.mixed(0.5)
    compiled = torch.compile(walk_with_defaults, fullgraph=True)
    assert torch.equal(compiled(problem.seeds, mixed), walk_with_defaults(problem.seeds, mixed))


def test_the_walk_compiles_once_for_five_grids():
    compilations = 0

    def counting_backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    compiled = torch.compile(walk_with_defaults, fullgraph=True, dynamic=True, backend=counting_backend)
    for seed, grid in enumerate([(6, 8), (7, 9), (9, 5), (12, 10), (5, 13)]):
        problem = walk_problem(seed, grid, cells=(4, 4), window=(5, 5), dtype=torch.float32)
        mixed = problem.mixed(0.5)
        assert torch.equal(compiled(problem.seeds, mixed), walk_with_defaults(problem.seeds, mixed))
    assert compilations == 1


def test_stages_one_and_two_compile_whole_with_gradients():
    def stages(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        entropy, lse = nk.attention_entropy(q, k, return_lse=True)
        w = nk.head_weights(entropy, num_keys=12)
        local = nk.local_affinity(q, k, w, grid=(3, 4), window=3, lse=lse)
        low_rank = nk.global_affinity(q, k, w, grid=(3, 4), cells=2, lse=lse)
        seeds = q[:, 0].softmax(-1)
        return nk.random_walk(seeds, nk.mix(low_rank, local, 0.5), alpha=0.8, steps=3)

    q, k = queries_and_keys(4, 1, 2, 12, 12, 4)
    compiled = torch.compile(stages, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (stages, compiled):
        leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
        result = function(*leaves)
        result[..., 0].sum().backward()
        gradients.append([result.detach(), *(leaf.grad for leaf in leaves)])
    for plain, whole in zip(*gradients, strict=True):
        assert torch.allclose(plain, whole, atol=1e-6)


def test_an_affinity_is_an_input_to_export():
    problem = walk_problem(5, (6, 8), dtype=torch.float32)

    class Walk(torch.nn.Module):
        def forward(self, seeds: torch.Tensor, affinity: nk.MixedAffinity) -> torch.Tensor:
            return walk_with_defaults(seeds, affinity)

    mixed = problem.mixed(0.5)
    exported = torch.export.export(Walk(), (problem.seeds, mixed))
    assert torch.equal(exported.module()(problem.seeds, mixed), walk_with_defaults(problem.seeds, mixed))


def test_affinities_are_pytrees_and_can_be_copied():
    mixed = walk_problem(6, (4, 5)).mixed(0.25)
    leaves, structure = torch.utils._pytree.tree_flatten(mixed)
    rebuilt = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert isinstance(rebuilt, nk.MixedAffinity)
    assert (rebuilt.beta, rebuilt.local.grid, rebuilt.local.window) == (0.25, (4, 5), (3, 3))
    for copied in (rebuilt, copy.deepcopy(mixed)):
        assert torch.equal(copied.to_dense(), mixed.to_dense())
    with pytest.raises(AttributeError):
        mixed.beta = 0.5


def test_autocast_changes_nothing_inside_an_operator():
    q, k = queries_and_keys(7, 1, 2, 12, 12, 4)
    problem = walk_problem(7, (3, 4), dtype=torch.float32)
    mixed = problem.mixed(0.5)
    plain = nk.attention_entropy(q, k), nk.random_walk(problem.seeds, mixed, alpha=0.9, steps=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nk.attention_entropy(q, k), nk.random_walk(problem.seeds, mixed, alpha=0.9, steps=3)
        low = nk.attention_entropy(q @ torch.eye(4), k @ torch.eye(4))
    for expected, result in zip(plain, inside, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)
    assert low.dtype == torch.float32


def test_vmap_over_a_leading_axis():
    q, k = queries_and_keys(8, 6, 2, 12, 12, 4)
    stacked = q.unflatten(0, (3, 2)), k.unflatten(0, (3, 2))
    assert torch.equal(torch.vmap(nk.attention_entropy)(*stacked).flatten(0, 1), nk.attention_entropy(q, k))
    shared = torch.vmap(nk.attention_entropy, in_dims=(0, None))(stacked[0], k[:2])
    for index in range(3):
        assert torch.equal(shared[index], nk.attention_entropy(stacked[0][index], k[:2]))
    problem = walk_problem(9, (3, 4), batch=4, affinity_batch=1, dtype=torch.float32)
    mixed = problem.mixed(0.5)
    expected = walk_with_defaults(problem.seeds, mixed)
    for axis in (0, 2):
        moved = problem.seeds.unsqueeze(1).movedim(0, axis)
        walked = torch.vmap(lambda seeds: walk_with_defaults(seeds, mixed), in_dims=axis)(moved)
        assert torch.allclose(walked[:, 0], expected, atol=1e-6)
    many = walk_problem(10, (3, 4), batch=4, dtype=torch.float32)

    def walk(seeds: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        affinity = nk.LocalAffinity(values[None], grid=(3, 4), window=3)
        return nk.random_walk(seeds[None], affinity, alpha=0.9, steps=6)[0]

    walked = torch.vmap(walk)(many.seeds, many.local.values)
    assert torch.allclose(walked, walk_with_defaults(many.seeds, many.mixed(0.0)), atol=1e-6)


def test_shapes_are_known_without_data():
    q = torch.empty(2, 8, 4096, 40, device="meta", dtype=torch.float16)
    assert nk.attention_entropy(q, q).shape == (2, 8, 4096)
    assert nk.attention_entropy(q, q).dtype == torch.float32
    w = torch.empty(2, 8, device="meta")
    local = nk.local_affinity(q, q, w, grid=(64, 64))
    low_rank = nk.global_affinity(q, q, w, grid=(64, 64))
    assert local.shape == low_rank.shape == (2, 4096, 4096)
    seeds = torch.empty(2, 4096, 21, device="meta")
    assert nk.random_walk(seeds, nk.mix(low_rank, local), alpha=0.9, steps=20).shape == seeds.shape


def test_sizes_past_32_bits_do_not_wrap():
    """65,536 tokens with a window of 257: 4.3 billion values; the shapes and every index are 64-bit."""
    q = torch.empty(1, 1, 65536, 8, device="meta")
    local = nk.local_affinity(q, q, torch.empty(1, 1, device="meta"), grid=(256, 256), window=257)
    assert local.values.numel() == 65536 * 257 * 257 > 2**32
    seeds = torch.empty(1, 65536, 2, device="meta")
    assert nk.random_walk(seeds, local, alpha=0.9, steps=2).shape == seeds.shape
    low_rank = nk.LowRankAffinity(torch.empty(1, 65536, 65536, device="meta"), grid=(256, 256), cells=256)
    assert low_rank.u.numel() == 2**32
    neighbour, _ = window_neighbours((2, 2**17), (1, 3))
    assert neighbour.dtype == cell_of_token((2, 2**17), (1, 2**17)).dtype == torch.int64
    assert (neighbour * 2**15).max() == (2**18 - 1) * 2**15, "as when a neighbour's row of values is looked up"
