// The matrix product for processors with AVX2 and FMA: 32-byte vectors, 16 registers.

#if defined(__x86_64__)

#include "block_product.h"

// Whatever follows is compiled for these instructions and runs only where best_instruction_set() found them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define INSTRUCTION_SET avx2
#define VECTOR_BYTES 32
#include "block_product_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace nerve_kernels::cpu {
const BlockProductKernels block_product_avx2 = {
    "avx2",
    {avx2::multiply<float>, avx2::sum_tokens<float>},
    {avx2::multiply<double>, avx2::sum_tokens<double>}};
}

#endif
