// Chooses, once, the kernels that fit the processor.

#include <cstdlib>
#include <string_view>

#include "kernels.h"

namespace nerve_kernels::cpu {
namespace {

Kernels choose() {
#if defined(__x86_64__)
  const char* setting = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = setting == nullptr ? "" : setting;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (has_avx512 && limit != "default" && limit != "avx2") {
    Kernels chosen = avx512::kernels;
    if (__builtin_cpu_supports("avx512bf16")) chosen.bf16_product = avx512::bf16_product;
    return chosen;
  }
  if (has_avx2 && limit != "default") return avx2::kernels;
#endif
  return portable::kernels;
}

}  // namespace

const Kernels& best_kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace nerve_kernels::cpu
