#pragma once

// The interface between the walk (tensors, dtypes, threads) and its matrix product (one block that fits the caches, one
// number type), which is compiled once per instruction set.

#include <cstdint>

#include "window_rows.h"

namespace nerve_kernels::cpu {

// out[row, label] += scale * sum over k < depth of a[row, k] * b[k, label], for `labels` labels.
template <typename Number>
struct BlockProduct {
  const Number* a;  // element (row, k) lies at row * a_row_stride + k * a_depth_stride; one of the two is 1
  int64_t a_row_stride, a_depth_stride;
  const Number* b;  // rows of `labels` numbers, `stride` apart
  Number* out;      // the same
  int64_t stride;
  int64_t rows, depth, labels;  // labels is a multiple of the quantum
  Number scale;
  // Where not null, as many bytes of as many rows are fetched into the cache meanwhile: what comes next.
  const char* next;
  int64_t next_row_stride, next_row_bytes;
};

// sum[label] += tokens[token, label] over `count` tokens, one after the other.
template <typename Number>
struct TokenSum {
  const Number* tokens;
  int64_t stride, count;
  Number* sum;
};

template <typename Number>
struct BlockProductFunctions {
  void (*multiply)(const BlockProduct<Number>&);
  void (*sum_tokens)(const TokenSum<Number>&);
};

struct BlockProductKernels {
  const char* instruction_set;
  BlockProductFunctions<float> float32;
  BlockProductFunctions<double> float64;

  template <typename Number>
  const BlockProductFunctions<Number>& of() const {
    if constexpr (sizeof(Number) == sizeof(float)) return float32;
    else return float64;
  }
};

// The best copy this processor runs.
const BlockProductKernels& best_block_product_kernels();

extern const BlockProductKernels block_product_portable;
#if defined(__x86_64__)
extern const BlockProductKernels block_product_avx2;
extern const BlockProductKernels block_product_avx512;
#endif

}  // namespace nerve_kernels::cpu
