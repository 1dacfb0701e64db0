#pragma once

// Sizes, and what is checked of them wherever an op is given some.

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }
inline int64_t round_up(int64_t count, int64_t size) { return ceil_div(count, size) * size; }

// Two positive sizes: down, across.
inline void check_pair(const std::vector<int64_t>& pair, const char* name) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] > 0 && pair[1] > 0, name, ": expected two positive sizes");
}

inline void check_grid(const std::vector<int64_t>& grid, int64_t tokens, const char* whose) {
  check_pair(grid, "grid");
  STD_TORCH_CHECK(grid[0] * grid[1] == tokens, "grid: expected the ", tokens, " tokens of ", whose, ", got ", grid[0],
                  " x ", grid[1]);
}

inline void check_window(const std::vector<int64_t>& window) {
  check_pair(window, "window");
  STD_TORCH_CHECK(window[0] % 2 == 1 && window[1] % 2 == 1, "window: expected two odd sizes, got ", window[0], " x ",
                  window[1]);
}

inline void check_cells(const std::vector<int64_t>& cells, int64_t height, int64_t width) {
  check_pair(cells, "cells");
  STD_TORCH_CHECK(cells[0] <= height && cells[1] <= width, "cells: expected at most one per token, got ", cells[0],
                  " x ", cells[1]);
}

}  // namespace nerve_kernels::cpu
