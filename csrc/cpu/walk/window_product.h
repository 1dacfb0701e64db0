#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

// S_local @ P: out[b, y*W + x, c] = sum over (dy, dx) of
//   values[b, y*W + x, dy*kw + dx] * p[b, (y + dy - kh/2)*W + (x + dx - kw/2), c],
// where neighbours outside the grid are never read.
//   values  (B or 1, N, kh*kw)   any of float64, float32, bfloat16, float16
//   p       (B or 1, N, C)       any of the same
//   grid    (H, W) with H*W = N; window (kh, kw), both odd
//   returns (B, N, C) in p's dtype; sums are kept in float32, in float64 where either input is float64.
torch::stable::Tensor window_product(
    torch::stable::Tensor values, torch::stable::Tensor p, std::vector<int64_t> grid, std::vector<int64_t> window);

// Its gradient for the values: out[b, i, o] = sum over c of left[b, i, c] * p[b, i + o, c], 0 outside the grid.
//   left, p  (B, N, C); returns (B, N, kh*kw) in float32, in float64 where either input is float64
torch::stable::Tensor window_gradient(
    torch::stable::Tensor left, torch::stable::Tensor p, std::vector<int64_t> grid, std::vector<int64_t> window);

}  // namespace nerve_kernels::cpu
