#pragma once

#include <torch/csrc/stable/tensor.h>

namespace nerve_kernels::cpu {

// The gradient of a product with sparse graphs for their entries: out[b, e] = left[b, row of e] . p[b, columns[e]]; 0 for
// what lies beyond the last row.
//   left, p  (B, N, C); row_pointers (B or 1, N + 1) int64; columns (B or 1, E) int32
//   returns  (B, E) in float32, in float64 where either input is float64
torch::stable::Tensor sampled_product(torch::stable::Tensor left, torch::stable::Tensor p,
                                      torch::stable::Tensor row_pointers, torch::stable::Tensor columns);

}  // namespace nerve_kernels::cpu
