// All kernels for one instruction set. The .cpp file of the set defines, before it includes this,
//   INSTRUCTION_SET   the namespace that keeps the copies apart
//   TARGET_FEATURES   the processor features to compile for; undefined for what every processor has
//   VECTOR_BYTES      the widest vector register: 16, 32 or 64
//   ROWS_PER_GROUP    query rows of the register tile of attention scores
// and INSTRUCTION_SET::kernels is then its table. Kernels are written once, with the compiler's vector types.

#include "kernels.h"
#include "target_region.h"

#if defined(TARGET_FEATURES)
BEGIN_TARGET(TARGET_FEATURES)
#endif

#include "vector_math.h"
// on vector_math.h
#include "attention_scores.h"
#include "attention_statistics.h"
#include "attention_window.h"
#include "best_labels.h"
#include "block_product.h"
#include "pixel_affinity.h"
#include "sharpened_attention.h"
#include "stencil_product.h"
#include "window_gradient.h"
// on window_gradient.h
#include "attention_gradient.h"
#include "sparse_rows.h"
#include "window_product.h"

#if defined(TARGET_FEATURES)
END_TARGET
#endif

namespace nerve_kernels::cpu::INSTRUCTION_SET {

template <typename Number>
constexpr KernelsOf<Number> kKernelsOf = {
    .tile = {ROWS_PER_GROUP, kPanelKeys<Number>, kPanelsAtOnce},
    .lanes = Numbers<Number>::kLanes,
    .entropy = entropy<Number>,
    .attention_statistics = attention_statistics<Number>,
    .attention_gradient = attention_gradient<Number>,
    .add_probabilities = add_probabilities<Number>,
    .add_window = add_window<Number>,
    .list_attention = list_attention<Number>,
    .sharpened_row = sharpened_row<Number>,
    .map_row_entropy = map_row_entropy<Number>,
    .block_product = block_product<Number>,
    .sum_tokens = sum_tokens<Number>,
    .window_product = window_product<Number>,
    .window_gradient = window_gradient<Number>,
    .sparse_product = sparse_product<Number>,
    .sampled_product = sampled_product<Number>,
    .stencil_labels = kStencilLabels,
    .stencil_product = stencil_product<Number>,
    .pixel_affinity = pixel_affinity<Number>,
    .bilinear_side = bilinear_side<Number>,
    .best_labels = best_labels<Number>,
};

constinit const Kernels kernels = {kKernelsOf<float>, kKernelsOf<double>};

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
