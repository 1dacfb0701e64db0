// The kernel for any processor: 16-byte vectors, which is SSE2 on x86-64 and NEON on arm64.

#include "window_rows.h"

#define INSTRUCTION_SET portable
#define VECTOR_BYTES 16
#define TOKENS_AT_ONCE 4
#include "window_rows_kernel.h"
#include "window_gradient_kernel.h"

namespace nerve_kernels::cpu {
const WindowRowKernels window_rows_portable = {
    "portable", portable::multiply_row<float>, portable::multiply_row<double>, portable::gradient_row<float>,
    portable::gradient_row<double>};
}
