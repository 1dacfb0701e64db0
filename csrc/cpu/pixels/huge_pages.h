#pragma once

// Memory that is touched for the first time, page by page, costs as much as several passes over it; in large pages far
// less. Where the system gives those only to who asks for them, this asks.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nerve_kernels::cpu {

// For memory of some megabytes that was just allocated and not yet written to.
inline void prefer_huge_pages(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const auto end = begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  // it is a wish: where it is not granted nothing is lost
  if (last > first) static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#else
  static_cast<void>(tensor);
#endif
}

}  // namespace nerve_kernels::cpu
