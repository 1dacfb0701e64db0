// Chooses, once, the copy of the kernel that fits the processor.

#include <cstdlib>
#include <string_view>

#include "window_rows.h"

namespace nerve_kernels::cpu {
namespace {

const WindowRowKernels& choose() {
#if defined(__x86_64__)
  const char* setting = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = setting == nullptr ? "" : setting;
  if (limit == "default") return window_rows_portable;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512 && limit != "avx2") return window_rows_avx512;
  if (avx2) return window_rows_avx2;
#endif
  return window_rows_portable;
}

}  // namespace

const WindowRowKernels& best_window_row_kernels() {
  static const WindowRowKernels& chosen = choose();
  return chosen;
}

}  // namespace nerve_kernels::cpu
