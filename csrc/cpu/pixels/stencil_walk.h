#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace nerve_kernels::cpu {

// The walk P <- (1 - alpha) G + alpha S P on window values at any offsets, for grids as large as images:
//   seeds    (B, N, C) G
//   start    (B, N, C) P before the first step; G where it is not given
//   values   (B or 1, N, K): of token i, column k weighs the token offsets[k] = (dy, dx) away
//   offsets  2 K numbers, in the order of the columns
//   clamp    a neighbour outside the grid is the nearest token inside; else it does not exist, and its value is not read
//   returns  (B, N, C) in the dtype of seeds; rows divided by their sums where `normalize` says so.
// All tensors may have any strides, values in planes (K, N) are read fastest. Besides the result it takes two planes a
// label (three with a restart) for some labels at a time.
torch::stable::Tensor stencil_walk(
    torch::stable::Tensor seeds, std::optional<torch::stable::Tensor> start, torch::stable::Tensor values,
    std::vector<int64_t> grid, std::vector<int64_t> offsets, bool clamp, double alpha, int64_t steps, bool normalize);

}  // namespace nerve_kernels::cpu
