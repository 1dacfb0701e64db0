// The inner loop of best_labels for each instruction set, and the choice among them.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "best_label_rows.h"
#include "instruction_set.h"

#define INSTRUCTION_SET portable
#define VECTOR_BYTES 16
#include "vector_math.h"
#include "best_labels.h"
#undef INSTRUCTION_SET
#undef VECTOR_BYTES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define INSTRUCTION_SET avx2
#define VECTOR_BYTES 32
#include "vector_math.h"
#include "best_labels.h"
#undef INSTRUCTION_SET
#undef VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define INSTRUCTION_SET avx512
#define VECTOR_BYTES 64
#include "vector_math.h"
#include "best_labels.h"
#undef INSTRUCTION_SET
#undef VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

namespace nerve_kernels::cpu {

template <typename Number>
const BestLabelFunctions<Number>& best_label_functions() {
#if defined(__x86_64__)
  static constexpr BestLabelFunctions<Number> kAvx512 = {avx512::bilinear_side<Number>, avx512::find_best_labels<Number>};
  static constexpr BestLabelFunctions<Number> kAvx2 = {avx2::bilinear_side<Number>, avx2::find_best_labels<Number>};
  if (best_instruction_set() == InstructionSet::avx512) return kAvx512;
  if (best_instruction_set() == InstructionSet::avx2) return kAvx2;
#endif
  static constexpr BestLabelFunctions<Number> kPortable = {portable::bilinear_side<Number>,
                                                          portable::find_best_labels<Number>};
  return kPortable;
}

template const BestLabelFunctions<float>& best_label_functions<float>();
template const BestLabelFunctions<double>& best_label_functions<double>();

}  // namespace nerve_kernels::cpu
