#pragma once

// A matrix product of bfloat16 numbers summed in float32 by the processor's own instruction, two products to a lane.

#include <cstdint>

namespace nerve_kernels::cpu {

// out[row, label] += scale * sum over k < depth of a[row, k] * b[k, label].
struct Bf16Product {
  const uint16_t* a;  // bfloat16; rows a_row_stride apart
  int64_t a_row_stride;
  const uint32_t* b;  // b[k/2, label] holds b[k, label] in its low half and b[k + 1, label] in its high half
  float* out;
  int64_t stride;               // of b and out
  int64_t rows, depth, labels;  // depth is even, labels a multiple of 8
  float scale;
  // Where not null, the same part of so many rows is fetched into the cache meanwhile: what comes next.
  const char* next;
};

using Bf16ProductFunction = void (*)(const Bf16Product&);

// Null where the processor has no such instruction (AVX512_BF16).
Bf16ProductFunction best_bf16_product();

#if defined(__x86_64__)
void bf16_product_avx512(const Bf16Product& product);
#endif

}  // namespace nerve_kernels::cpu
