// Chooses, once, the copies of the kernels that fit the processor.

#include <cstdlib>
#include <string_view>

#include "attention_kernels.h"
#include "bf16_product.h"
#include "block_product.h"
#include "instruction_set.h"
#include "window_rows.h"

namespace nerve_kernels::cpu {
namespace {

InstructionSet find_instruction_set() {
#if defined(__x86_64__)
  const char* setting = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = setting == nullptr ? "" : setting;
  if (limit == "default") return InstructionSet::portable;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512 && limit != "avx2") return InstructionSet::avx512;
  if (avx2) return InstructionSet::avx2;
#endif
  return InstructionSet::portable;
}

}  // namespace

InstructionSet best_instruction_set() {
  static const InstructionSet found = find_instruction_set();
  return found;
}

const WindowRowKernels& best_window_row_kernels() {
#if defined(__x86_64__)
  if (best_instruction_set() == InstructionSet::avx512) return window_rows_avx512;
  if (best_instruction_set() == InstructionSet::avx2) return window_rows_avx2;
#endif
  return window_rows_portable;
}

const BlockProductKernels& best_block_product_kernels() {
#if defined(__x86_64__)
  if (best_instruction_set() == InstructionSet::avx512) return block_product_avx512;
  if (best_instruction_set() == InstructionSet::avx2) return block_product_avx2;
#endif
  return block_product_portable;
}

Bf16ProductFunction best_bf16_product() {
#if defined(__x86_64__)
  static const bool has_bf16 =
      best_instruction_set() == InstructionSet::avx512 && __builtin_cpu_supports("avx512bf16") != 0;
  if (has_bf16) return bf16_product_avx512;
#endif
  return nullptr;
}

const AttentionKernels& best_attention_kernels() {
#if defined(__x86_64__)
  if (best_instruction_set() == InstructionSet::avx512) return attention_avx512;
  if (best_instruction_set() == InstructionSet::avx2) return attention_avx2;
#endif
  return attention_portable;
}

}  // namespace nerve_kernels::cpu
