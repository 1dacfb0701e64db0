// The matrix product for processors with AVX-512: 64-byte vectors, 24 of 32 registers hold a tile.

#if defined(__x86_64__)

#include "block_product.h"

// Whatever follows is compiled for these instructions and runs only where best_instruction_set() found them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

#define INSTRUCTION_SET avx512
#define VECTOR_BYTES 64
#include "block_product_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace nerve_kernels::cpu {
const BlockProductKernels block_product_avx512 = {
    "avx512",
    {avx512::multiply<float>, avx512::sum_tokens<float>},
    {avx512::multiply<double>, avx512::sum_tokens<double>}};
}

#endif
