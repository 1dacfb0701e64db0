#pragma once

// The interface between the ops (tensors, dtypes, threads) and their inner loops (packed blocks of one number type),
// which are compiled once per instruction set: what each kernel is given, and the table of them.

#include <cstdint>

#include "attention_tasks.h"
#include "pixels.h"

namespace nerve_kernels::cpu {

// ---- the walk -----------------------------------------------------------------------------------------------------

// Rows of P are padded with zeros to a multiple of this, whatever the instruction set.
constexpr int64_t kLabelQuantumBytes = 32;

// The numbers of a row of P, padding included.
template <typename Number>
constexpr int64_t padded_labels(int64_t labels) {
  constexpr int64_t kQuantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
  return (labels + kQuantum - 1) / kQuantum * kQuantum;
}

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

// The same with `a` in bfloat16, multiplied by the processor's own instruction, two products to a lane.
struct Bf16Product {
  const uint16_t* a;  // rows a_row_stride apart
  int64_t a_row_stride;
  const uint32_t* b;  // b[k/2, label] holds b[k, label] in its low half and b[k + 1, label] in its high half
  float* out;
  int64_t stride;               // of b and out
  int64_t rows, depth, labels;  // depth is even, labels a multiple of 8
  float scale;
  // Where not null, the same part of so many rows is fetched into the cache meanwhile: what comes next.
  const char* next;
};

// sum[label] += tokens[token, label] over `count` tokens, one after the other.
template <typename Number>
struct TokenSum {
  const Number* tokens;
  int64_t stride, count;
  Number* sum;
};

// One grid row y of the window product of one image, or some tokens of it.
template <typename Number>
struct WindowRow {
  const Number* values = nullptr;  // (width, window_height*window_width): the window weights of this row's tokens
  const Number* p;                 // (height*width, stride): P of the whole image, rows padded with zeros to `stride`
  Number* out;                     // (width, stride): `scale` times this row's result is added to it, padding included
  Number scale;
  int64_t stride;
  int64_t y, height, width;
  int64_t x_begin = 0, x_end = 0;  // the tokens to compute
  int64_t window_height, window_width;
};

// The gradient of a row's product for its window values: gradient[x, o] = left[y, x] . p[(y, x) + o].
template <typename Number>
struct WindowGradientRow {
  const Number* left;  // (width, stride): the gradient that came to this row's result
  const Number* p;     // (height*width, stride), as above
  Number* gradient;    // (width, window_height*window_width); what lies outside the grid is not written
  int64_t stride;
  int64_t y, height, width;
  int64_t window_height, window_width;
};

// out[row] += scale * (S P)[row] for some rows of a sparse graph: S as its entries, row after row; an empty row is the
// identity's.
template <typename Number>
struct SparseRows {
  const int64_t* row_pointers;
  const int32_t* columns;
  const Number* values;
  const Number* p;  // (N, stride)
  Number* out;      // (row_end - row_begin, stride)
  int64_t row_begin, row_end;
  int64_t stride;  // a multiple of the quantum
  Number scale;
};

// The gradient of such a product for the entries of some rows: products[e] = left[row of e] . p[columns[e]].
template <typename Number>
struct SampledRows {
  const int64_t* row_pointers;
  const int32_t* columns;
  const Number *left, *p;  // (N, stride)
  Number* products;        // (entries)
  int64_t row_begin, row_end;
  int64_t stride;
};

// ---- the table ----------------------------------------------------------------------------------------------------

// The kernels for one number type.
template <typename Number>
struct KernelsOf {
  TileSizes tile;
  int64_t lanes;  // numbers per vector: what a WindowTask's widths are padded to
  void (*entropy)(const EntropyTask<Number>&);
  void (*attention_statistics)(const StatisticsTask<Number>&);
  void (*attention_gradient)(const AttentionGradientTask<Number>&);
  void (*add_probabilities)(const ProbabilityTask<Number>&);
  void (*add_window)(const WindowTask<Number>&);
  void (*list_attention)(const AttentionListTask<Number>&);
  void (*sharpened_row)(const SharpenedRow<Number>&);
  // -sum of a * log(a) over one row of a map; 0 * log 0 is 0
  Number (*map_row_entropy)(const Number* row, int64_t keys);
  void (*block_product)(const BlockProduct<Number>&);
  void (*sum_tokens)(const TokenSum<Number>&);
  void (*window_product)(const WindowRow<Number>&);
  void (*window_gradient)(const WindowGradientRow<Number>&);
  void (*sparse_product)(const SparseRows<Number>&);
  void (*sampled_product)(const SampledRows<Number>&);
  int64_t stencil_labels;  // as many as stencil_product is best given at a time, or a multiple
  void (*stencil_product)(const StencilRows<Number>&);
  void (*pixel_affinity)(const PixelRow<Number>&);
  void (*bilinear_side)(const BilinearSide<Number>&);  // fills in all but the two counts
  void (*best_labels)(const BestLabelRows<Number>&);
};

// The kernels for one instruction set.
struct Kernels {
  KernelsOf<float> float32;
  KernelsOf<double> float64;
  void (*bf16_product)(const Bf16Product&) = nullptr;  // where the processor has such an instruction
};

// Those of the best instruction set that this processor has, chosen once. Like torch's own kernels the choice obeys
// ATEN_CPU_CAPABILITY ("default", "avx2", "avx512"), which can only lower it.
const Kernels& best_kernels();

template <typename Number>
const KernelsOf<Number>& best_kernels_of() {
  if constexpr (sizeof(Number) == sizeof(float))
    return best_kernels().float32;
  else
    return best_kernels().float64;
}

namespace portable {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
void bf16_product(const Bf16Product& product);  // needs AVX512_BF16 besides
}
#endif

}  // namespace nerve_kernels::cpu
