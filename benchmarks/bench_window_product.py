"""S_local @ P: our backends against a sparse CSR matrix product, the obvious way to do it in plain torch.

One 64 x 64 token grid with a 7 x 7 window; 21 labels (Pascal VOC) and 171 (COCO-Stuff).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nerve_kernels  # noqa: F401  (registers the ops)

GRID, WINDOW = (64, 64), (7, 7)


def as_csr(values: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The window weights of one image as a sparse N x N matrix, without the entries outside the grid."""
    (height, width), (window_height, window_width) = grid, window
    y = torch.arange(height)[:, None] + torch.arange(window_height) - window_height // 2
    x = torch.arange(width)[:, None] + torch.arange(window_width) - window_width // 2
    columns = y[:, None, :, None] * width + x[None, :, None, :]  # H, W, kh, kw
    inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[None, :, None, :]
    rows = torch.arange(height * width).reshape(height, width, 1, 1).expand_as(columns)
    weights = values.reshape(height, width, window_height, window_width)
    places = torch.stack([rows[inside], columns[inside]])
    return torch.sparse_coo_tensor(
        places, weights[inside], (height * width,) * 2, check_invariants=False
    ).to_sparse_csr()


def implementations(values: Tensor, p: Tensor) -> dict[str, Callable[[], Tensor]]:
    product = torch.ops.nerve_kernels.window_product
    matrix, flat_p = as_csr(values[0], GRID, WINDOW), p[0]
    return {
        "cpp": lambda: product(values, p, GRID, WINDOW, backend="cpp"),
        "eager": lambda: product(values, p, GRID, WINDOW, backend="eager"),
        "torch CSR": lambda: matrix @ flat_p,
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("labels", [21, 171])
@pytest.mark.parametrize("name", ["cpp", "eager", "torch CSR"])
def bench_window_product(benchmark: Callable[..., Tensor], name: str, labels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = GRID[0] * GRID[1]
    values = torch.rand(1, tokens, WINDOW[0] * WINDOW[1], generator=generator)
    p = torch.rand(1, tokens, labels, generator=generator)
    candidates = implementations(values, p)
    result = benchmark(candidates[name])
    torch.testing.assert_close(result.reshape(tokens, labels), candidates["eager"]()[0], rtol=1e-4, atol=1e-4)
