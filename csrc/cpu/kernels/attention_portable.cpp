// The attention kernels for any processor: 16-byte vectors, which is SSE2 on x86-64 and NEON on arm64.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "attention_kernels.h"

#define INSTRUCTION_SET portable
#define VECTOR_BYTES 16
#define ROWS_PER_GROUP 4
#define VECTORS_PER_PANEL 2
#include "vector_math.h"
#include "attention_scores.h"
#include "attention_window.h"

namespace nerve_kernels::cpu {
const AttentionKernels attention_portable = {
    "portable",
    {{ROWS_PER_GROUP, portable::kPanelKeys<float>}, portable::Numbers<float>::kLanes, portable::entropy<float>,
     portable::add_probabilities<float>, portable::add_window<float>, portable::map_row_entropy<float>},
    {{ROWS_PER_GROUP, portable::kPanelKeys<double>}, portable::Numbers<double>::kLanes, portable::entropy<double>,
     portable::add_probabilities<double>, portable::add_window<double>, portable::map_row_entropy<double>}};
}

