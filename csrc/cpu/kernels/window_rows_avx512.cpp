// The kernel for processors with AVX-512: 64-byte vectors, 32 registers.

#if defined(__x86_64__)

#include "window_rows.h"

// Whatever follows is compiled for these instructions and runs only where best_window_row_kernels() found them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

#define INSTRUCTION_SET avx512
#define VECTOR_BYTES 64
#define TOKENS_AT_ONCE 4
#include "window_rows_kernel.h"
#include "window_gradient_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace nerve_kernels::cpu {
const WindowRowKernels window_rows_avx512 = {
    "avx512", avx512::multiply_row<float>, avx512::multiply_row<double>, avx512::gradient_row<float>,
    avx512::gradient_row<double>};
}

#endif
