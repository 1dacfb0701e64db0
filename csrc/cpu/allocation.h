#pragma once

// Tensors for results and workspaces. Memory that is touched for the first time, page by page, costs as much as several
// passes over it; in large pages far less. Where the system gives those only to who asks for them, this asks.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nerve_kernels::cpu {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using OptionalDtype = std::optional<torch::headeronly::ScalarType>;

constexpr uintptr_t kPageBytes = 4096, kHugePageBytes = uintptr_t{1} << 21;

// A tensor on the CPU whose values are anything.
inline torch::stable::Tensor allocate(const torch::stable::Tensor& like, Sizes sizes, OptionalDtype dtype = {}) {
  torch::stable::Tensor tensor = torch::stable::new_empty(like, sizes, dtype);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (end - begin >= kHugePageBytes) {
    const uintptr_t first = (begin + kPageBytes - 1) / kPageBytes * kPageBytes, last = end / kPageBytes * kPageBytes;
    // it is a wish: where it is not granted nothing is lost
    static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
  }
#endif
  return tensor;
}

inline torch::stable::Tensor allocate_zeros(const torch::stable::Tensor& like, Sizes sizes, OptionalDtype dtype = {}) {
  torch::stable::Tensor tensor = allocate(like, sizes, dtype);
  torch::stable::zero_(tensor);
  return tensor;
}

}  // namespace nerve_kernels::cpu
