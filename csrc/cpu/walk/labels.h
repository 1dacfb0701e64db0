#pragma once

// Labels as the kernels want them: in the type that is computed in, each token's padded with zeros to `stride` numbers.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "walk_problem.h"

namespace nerve_kernels::cpu {

// The labels of `count` tokens from `first` on, times `factor`.
template <typename Number>
void load_labels(const MatrixBatch& from, int64_t image, int64_t first, int64_t count, Number factor, int64_t stride,
                 Number* out);

// All of (B, N, C).
template <typename Number>
torch::stable::Tensor pack_labels(const torch::stable::Tensor& tensor, int64_t stride);

// The labels of `count` tokens back to `out` (B, N, C), which is contiguous, from token `first` on; where `normalize`
// says so, divided by their sum, in place, first.
template <typename Number>
void store_labels(Number* from, int64_t stride, int64_t image, int64_t first, int64_t count, bool normalize,
                  torch::stable::Tensor& out);

// (B, N, C), contiguous, in another dtype; where `normalize` says so, each token's divided by their sum first. Where the
// dtype is the same, in place.
template <typename Number>
torch::stable::Tensor finish_labels(torch::stable::Tensor wide, ScalarType dtype, bool normalize);

}  // namespace nerve_kernels::cpu
