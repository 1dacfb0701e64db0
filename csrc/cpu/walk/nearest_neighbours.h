#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace nerve_kernels::cpu {

using torch::stable::Tensor;

// The places of the k largest numbers of each row, ascending; of equals those before. What is not a number is least.
//   products  (rows, N), float32 or float64
//   returns   (rows, k), int32
Tensor nearest_columns(Tensor products, int64_t k);

// W + W^T of a graph with k entries a row, some of which may be 0 and count for nothing, as compressed rows.
//   columns   (N, k), int32, ascending in a row and each but once
//   weights   (N, k), float32 or float64
//   returns   row pointers (N + 1) int64, columns (2 N k) int32, values (2 N k); what lies beyond the last pointer is 0
std::tuple<Tensor, Tensor, Tensor> add_transpose(Tensor columns, Tensor weights);

}  // namespace nerve_kernels::cpu
