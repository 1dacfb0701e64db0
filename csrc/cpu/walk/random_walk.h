#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace nerve_kernels::cpu {

// All steps of the random walk: P <- (1-alpha) G + alpha S P, from P = start (G where there is none), then each row
// divided by its sum where `normalize` says so.
//   seeds   G (B, N, C), start the same; float32, float64, bfloat16 or float16, any strides
//   values  (B or 1, N, kh*kw): S_local, zero outside the grid
//   row_pointers, columns  (B or 1, N + 1) int64 and (B or 1, E) int32: S_local is a graph, values (B or 1, E) its
//           entries; an empty row is the identity's
//   u, v    S_global. With u and no v: u (B or 1, N, h*w) times the averages over cells. With both: u v^T,
//           (B or 1, N, r) each. With v and no u: the transpose of the first, what cells gather spread over their
//           tokens: averages^T v^T.
//   dense   (B or 1, N, N): S itself
//   grid    (H, W); window (kh, kw); cells (h, w); those that are not needed are not looked at
//   beta    the share of S_global where S_local is there too
// Everything is stored in the dtype it comes in and summed in float32, in float64 where any input is float64; a v of
// another dtype is converted first. Bitwise the same for any number of threads: every sum has one order.
torch::stable::Tensor random_walk(
    torch::stable::Tensor seeds, std::optional<torch::stable::Tensor> start,
    std::optional<torch::stable::Tensor> values, std::optional<torch::stable::Tensor> u,
    std::optional<torch::stable::Tensor> v, std::optional<torch::stable::Tensor> dense,
    std::optional<torch::stable::Tensor> row_pointers, std::optional<torch::stable::Tensor> columns,
    std::vector<int64_t> grid, std::vector<int64_t> window, std::vector<int64_t> cells, double beta, double alpha,
    int64_t steps, bool normalize);

}  // namespace nerve_kernels::cpu
