#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

// (I - alpha S) X = R by conjugate gradients from X = 0, for a symmetric S of window values at any offsets, which are as
// those of stencil_walk: each label of an image has directions and lengths of its own, all share the products with S.
//   right       (B, N, C)
//   iterations  at most so many
//   tolerance   a label is done once its residual's norm is at most so much of its right-hand side's; 0: never
//   returns     X (B, N, C) in the dtype of right.
torch::stable::Tensor stencil_solve(
    torch::stable::Tensor right, torch::stable::Tensor values, std::vector<int64_t> grid, std::vector<int64_t> offsets,
    bool clamp, double alpha, int64_t iterations, double tolerance);

}  // namespace nerve_kernels::cpu
