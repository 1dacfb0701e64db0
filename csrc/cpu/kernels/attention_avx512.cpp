// The attention kernels for processors with AVX-512: 64-byte vectors; 24 of 32 registers hold a tile of scores.

#if defined(__x86_64__)
#include <immintrin.h>

#include "attention_kernels.h"

// Whatever follows is compiled for these instructions and runs only where best_instruction_set() found them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

#define INSTRUCTION_SET avx512
#define VECTOR_BYTES 64
#define ROWS_PER_GROUP 12
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
const AttentionKernels attention_avx512 = {
    "avx512",
    {{ROWS_PER_GROUP, avx512::kPanelKeys<float>}, avx512::Numbers<float>::kLanes, avx512::entropy<float>,
     avx512::add_probabilities<float>, avx512::add_window<float>, avx512::map_row_entropy<float>},
    {{ROWS_PER_GROUP, avx512::kPanelKeys<double>}, avx512::Numbers<double>::kLanes, avx512::entropy<double>,
     avx512::add_probabilities<double>, avx512::add_window<double>, avx512::map_row_entropy<double>}};
}

#endif
