// The attention kernels for processors with AVX2 and FMA: 32-byte vectors; 12 of 16 registers hold a tile of scores.

#if defined(__x86_64__)
#include <immintrin.h>

#include "attention_kernels.h"

// Whatever follows is compiled for these instructions and runs only where best_instruction_set() found them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define INSTRUCTION_SET avx2
#define VECTOR_BYTES 32
#define ROWS_PER_GROUP 6
#define VECTORS_PER_PANEL 2
#include "vector_math.h"
#include "attention_scores.h"
#include "attention_window.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace nerve_kernels::cpu {
const AttentionKernels attention_avx2 = {
    "avx2",
    {{ROWS_PER_GROUP, avx2::kPanelKeys<float>}, avx2::Numbers<float>::kLanes, avx2::entropy<float>,
     avx2::add_probabilities<float>, avx2::add_window<float>, avx2::map_row_entropy<float>},
    {{ROWS_PER_GROUP, avx2::kPanelKeys<double>}, avx2::Numbers<double>::kLanes, avx2::entropy<double>,
     avx2::add_probabilities<double>, avx2::add_window<double>, avx2::map_row_entropy<double>}};
}

#endif
