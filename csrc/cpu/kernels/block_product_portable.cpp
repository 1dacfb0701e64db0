// The matrix product for any processor: 16-byte vectors, which is SSE2 on x86-64 and NEON on arm64.

#include "block_product.h"

#define INSTRUCTION_SET portable
#define VECTOR_BYTES 16
#include "block_product_kernel.h"

namespace nerve_kernels::cpu {
const BlockProductKernels block_product_portable = {
    "portable",
    {portable::multiply<float>, portable::sum_tokens<float>},
    {portable::multiply<double>, portable::sum_tokens<double>}};
}
