"""One problem per operation, solved by a kernel module and judged against the reference; shared with the mutants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.ops.problems import queries_and_keys, random_weights, relative_error
from torch import Tensor

from nerve_kernels import LocalAffinity, LowRankAffinity, reference
from nerve_kernels._operators.attention import score_gradients
from nerve_kernels._operators.attention.local_affinity import backward as local_backward
from nerve_kernels.grids import window_neighbours

TOLERANCE = 5e-6  # float32 sums of a few hundred terms
# a kernel's output in float16 has rounding of 2⁻¹¹ in each element
OUTPUT_TOLERANCE = {torch.float32: TOLERANCE, torch.float16: 5e-4}


def growing_keys(
    head_size: int, dtype: torch.dtype, queries: int, keys: int, batch: int = 1, heads: int = 2
) -> tuple[Tensor, Tensor]:
    """q and k whose scores grow along the keys, so that each block of keys moves the maximum of most rows."""
    q, k = queries_and_keys(head_size, batch, heads, queries, keys, head_size, torch.float32)
    return q.to(dtype), (k * torch.linspace(0.5, 2.0, keys)[:, None]).to(dtype)


def attention_entropy(
    run: Callable[..., Any], head_size: int, dtype: torch.dtype, queries: int = 70, keys: int = 131, **more: int
) -> None:
    q, k = growing_keys(head_size, dtype, queries, keys, **more)
    entropy, lse = run(q, k, head_size**-0.5)
    expected_entropy, expected_lse = reference.attention_entropy(q, k, return_lse=True)
    assert (entropy - expected_entropy).abs().max() < TOLERANCE
    assert (lse - expected_lse).abs().max() < TOLERANCE


def _with_lse(q: Tensor, k: Tensor) -> Tensor:
    return reference.attention_entropy(q, k, return_lse=True)[1].float()


def attention_marginal(
    run: Callable[..., Any], head_size: int, dtype: torch.dtype, queries: int = 70, keys: int = 131, **more: int
) -> None:
    q, k = growing_keys(head_size, dtype, queries, keys, **more)
    marginal = run(q, k, _with_lse(q, k), head_size**-0.5)
    assert relative_error(marginal, reference.attention_marginal(q, k)) < TOLERANCE


def fuse_attention(
    run: Callable[..., Any], head_size: int, dtype: torch.dtype, queries: int = 70, keys: int = 131, **more: int
) -> None:
    q, k = growing_keys(head_size, dtype, queries, keys, **more)
    w = random_weights(1, *q.shape[:2])
    fused = run(q, k, w, _with_lse(q, k), head_size**-0.5)
    assert fused.dtype == dtype
    assert relative_error(fused, reference.fuse_attention(q, k, w)) < OUTPUT_TOLERANCE[dtype]


def local_affinity(
    run: Callable[..., Any],
    head_size: int,
    dtype: torch.dtype,
    grid: tuple[int, int] = (5, 9),
    window: tuple[int, int] = (5, 3),
    **more: int,
) -> None:
    tokens = grid[0] * grid[1]
    q, k = growing_keys(head_size, dtype, tokens, tokens, **more)
    w = random_weights(1, *q.shape[:2])
    values = run(q, k, w, _with_lse(q, k), list(grid), list(window), head_size**-0.5, True)
    result = LocalAffinity(values, grid=grid, window=window).to_dense()
    assert relative_error(result, reference.local_affinity(q, k, w, grid=grid, window=window)) < TOLERANCE
    assert not values.isnan().any(), "entries outside of the grid are 0, not left as they were"
    assert (values.sum(-1) - 1).abs().max() < TOLERANCE


def global_affinity(
    run: Callable[..., Any],
    head_size: int,
    dtype: torch.dtype,
    grid: tuple[int, int] = (7, 11),
    cells: tuple[int, int] = (3, 4),
    **more: int,
) -> None:
    tokens = grid[0] * grid[1]
    q, k = growing_keys(head_size, dtype, tokens, tokens, **more)
    w = random_weights(1, *q.shape[:2])
    u = run(q, k, w, _with_lse(q, k), list(grid), list(cells), head_size**-0.5)
    result = LowRankAffinity(u, grid=grid, cells=cells).to_dense()
    assert relative_error(result, reference.global_affinity(q, k, w, grid=grid, cells=cells)) < TOLERANCE


def attention_statistics(
    run: Callable[..., Any],
    head_size: int,
    dtype: torch.dtype,
    grid: tuple[int, int] = (9, 8),
    window: tuple[int, int] = (5, 3),
    cells: tuple[int, int] = (3, 4),
    sharpness: float = 1.0,
    gain: float = 1.0,
    scale: float | None = None,
    bfloat16: bool = False,
    **more: int,
) -> None:
    """``gain`` multiplies the keys, ever more along the grid, so that no row's maximum is near its own token."""
    tokens = grid[0] * grid[1]
    q, k = growing_keys(head_size, dtype, tokens, tokens, **more)
    k = k * torch.linspace(1, gain, tokens).to(dtype)[:, None]
    scale = head_size**-0.5 if scale is None else scale
    results = run(q, k, list(grid), list(window), list(cells), scale, sharpness, bfloat16)
    entropy, lse, local, pooled, cell_lse = results
    scores = scale * (q.double() @ k.double().transpose(-1, -2))
    neighbour, inside = window_neighbours(grid, window)
    expected = reference.attention(q, k, scale=scale)
    expected_local = expected.gather(-1, neighbour.expand(*q.shape[:2], -1, -1)) * inside
    membership = (reference.cell_average(grid, cells) > 0).double()
    expected_pooled = (sharpness * scores).softmax(-1) @ membership
    # a score is rounded as a float32 of its size
    tolerance = TOLERANCE * max(1.0, float(scores.abs().max()) / 16)
    assert (entropy - reference.attention_entropy(q, k, scale=scale)).abs().max() < tolerance
    assert relative_error(lse, scores.logsumexp(-1)) < TOLERANCE
    assert relative_error(cell_lse, (sharpness * scores).logsumexp(-1)) < TOLERANCE
    assert local.dtype == pooled.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    # the interpreter cuts what a GPU rounds, and cells are stored twice
    storage = 2**-6 if bfloat16 else tolerance * max(1.0, sharpness)
    for result, exact in ((local, expected_local), (pooled, expected_pooled)):
        assert not result.isnan().any(), "every entry is written"
        assert ((result.double() - exact).abs() <= storage * exact + 1e-12).all()


def attention_gradient(
    run: Callable[..., Any],
    head_size: int,
    dtype: torch.dtype,
    grid: tuple[int, int] = (5, 9),
    window: tuple[int, int] = (5, 3),
    cells: tuple[int, int] = (3, 4),
    sharpness: float = 1.0,
    parts: str = "terms local pooled",
    queries: int | None = None,
    shift: float = 0.0,
    **more: int,
) -> None:
    """Against the same pass in plain torch and float64, which other tests hold to finite differences.

    ``parts`` are given; the gradients of cells are one for all heads; ``shift`` is added to all scores, and so to lse.
    """
    tokens = grid[0] * grid[1]
    q, k = growing_keys(head_size, dtype, queries or tokens, tokens, **more)
    if shift:
        q[..., 0], k[..., 0] = 1, shift * head_size**0.5
    batch, heads, rows, _ = q.shape
    generator = torch.Generator().manual_seed(6)
    scores = head_size**-0.5 * (q.double() @ k.double().transpose(-1, -2))
    lse, cell_lse = (factor * scores for factor in (1.0, sharpness))
    of_rows = [item.logsumexp(-1).float() for item in (lse, cell_lse)]
    a, b, c = torch.randn(3, batch, heads, rows, generator=generator)
    local = torch.randn(batch, heads, rows, window[0] * window[1], generator=generator)
    pooled = torch.randn(batch, 1, rows, cells[0] * cells[1], generator=generator).expand(-1, heads, -1, -1)
    arguments = [
        q, k, of_rows[0], *((a, b) if "terms" in parts else (None, None)),
        *((of_rows[1], c) if sharpness != 1 else (None, None)),
        local if "local" in parts else None, pooled if "pooled" in parts else None,
    ]  # fmt: skip
    options = list(grid), list(window), list(cells), head_size**-0.5, sharpness
    found = run(*arguments, *options)
    wide = [None if item is None else item.double() for item in arguments]
    tolerance = TOLERANCE * max(1.0, abs(shift) / 16)
    for result, expected in zip(found, score_gradients.eager(*wide, *options), strict=True):
        assert result.dtype == torch.float32
        assert relative_error(result, expected) < tolerance


def local_gradient(
    run: Callable[..., Any],
    head_size: int,
    dtype: torch.dtype,
    grid: tuple[int, int] = (5, 9),
    window: tuple[int, int] = (5, 3),
    normalize: bool = True,
    **more: int,
) -> None:
    tokens = grid[0] * grid[1]
    q, k = growing_keys(head_size, dtype, tokens, tokens, **more)
    grad = torch.randn(q.shape[0], tokens, window[0] * window[1], generator=torch.Generator().manual_seed(7))
    inputs = grad, q, k, random_weights(1, *q.shape[:2]), _with_lse(q, k)
    options = list(grid), list(window), head_size**-0.5, normalize
    expected = local_backward(*(item.double() for item in inputs), *options)
    for result, exact in zip(run(*inputs, *options), expected, strict=True):
        # of a window of one token nothing is left when it is divided by its sum
        assert (result - exact).norm() < TOLERANCE * max(1.0, float(exact.norm()))


def _maps(dtype: torch.dtype, queries: int, keys: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    maps = (4 * torch.randn(2, 3, queries, keys, generator=generator)).softmax(-1)
    maps[0, 0, 0] = 0
    maps[0, 0, 0, keys // 2] = 1
    return maps.to(dtype)


def attention_map_entropy(
    run: Callable[..., Any], head_size: int, dtype: torch.dtype, queries: int = 5, keys: int = 1030
) -> None:
    maps = _maps(dtype, queries, keys)
    entropy = run(maps)
    assert entropy[0, 0, 0] == 0
    assert (entropy - reference.attention_map_entropy(maps)).abs().max() < TOLERANCE


def fuse_attention_maps(
    run: Callable[..., Any], head_size: int, dtype: torch.dtype, queries: int = 9, keys: int = 261
) -> None:
    maps = _maps(dtype, queries, keys)
    w = random_weights(4, 2, 3)
    fused = run(maps, w)
    assert relative_error(fused, reference.fuse_attention_maps(maps, w)) < OUTPUT_TOLERANCE[dtype]


def fuse_attention_maps_gradient(
    run: Callable[..., Any], head_size: int, dtype: torch.dtype, queries: int = 9, keys: int = 261
) -> None:
    maps, w = _maps(dtype, queries, keys), random_weights(4, 2, 3)
    grad = torch.randn(2, queries, keys, generator=torch.Generator().manual_seed(6))
    grad_maps, grad_w = run(grad, maps, w)
    assert grad_maps.dtype == dtype
    wide_grad, wide_maps = grad.double(), maps.double()
    assert relative_error(grad_maps, w.double()[:, :, None, None] * wide_grad[:, None]) < OUTPUT_TOLERANCE[dtype]
    assert relative_error(grad_w, torch.einsum("bnk,bhnk->bh", wide_grad, wide_maps)) < TOLERANCE


def best_labels(
    run: Callable[..., Any],
    head_size: int,
    dtype: torch.dtype,
    tokens: tuple[int, int] = (5, 4),
    size: tuple[int, int] = (7, 600),
    count: int = 6,
) -> None:
    generator = torch.Generator().manual_seed(5)
    planes = torch.rand(2, count, *tokens, generator=generator)
    planes[:, count // 2] = planes[:, 0]  # never the first of the best
    planes[1, 1] = float("nan")  # never the best
    planes = planes.to(dtype)
    labels = run(planes, *size, 0.7, -3)
    expected = reference.best_labels(planes.nan_to_num(-1), size=size, threshold=0.7, fallback=-3)
    # where two labels are equally good, rounding decides
    assert (labels != expected).double().mean() < 1e-3
    assert ((labels >= 0) | (labels == -3)).all()


PROBLEMS = {
    problem.__name__: problem
    for problem in (
        attention_entropy,
        attention_marginal,
        fuse_attention,
        local_affinity,
        global_affinity,
        attention_statistics,
        attention_gradient,
        local_gradient,
        attention_map_entropy,
        fuse_attention_maps,
        fuse_attention_maps_gradient,
        best_labels,
    )
}
