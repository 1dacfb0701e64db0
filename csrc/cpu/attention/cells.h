#pragma once

#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

// The cells + 1 edges floor(a * side / cells) along one side.
inline std::vector<int64_t> cell_edges(int64_t side, int64_t cells) {
  std::vector<int64_t> edges(cells + 1);
  for (int64_t a = 0; a <= cells; ++a) edges[a] = a * side / cells;
  return edges;
}

}  // namespace nerve_kernels::cpu
