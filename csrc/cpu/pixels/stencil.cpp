// Offsets, planes and plans; no tensors.

#include "stencil.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

#include "../checks.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kLineBytes = 64;

// Whether most neighbours of a row are neighbours of the next row too, as in a window without gaps.
bool shares_neighbours(const Stencil& stencil) {
  std::set<std::pair<int64_t, int64_t>> all;
  for (const auto& offset : stencil.offsets) all.insert({offset.dy, offset.dx});
  const auto shared = std::count_if(stencil.offsets.begin(), stencil.offsets.end(), [&](const StencilOffset& offset) {
    return all.count({offset.dy + 1, offset.dx}) > 0;
  });
  return 2 * shared >= static_cast<int64_t>(stencil.offsets.size());
}

StencilPlan make_plan(const Stencil& stencil, const PlaneLayout& layout, int64_t first, int64_t rows) {
  StencilPlan plan;
  std::vector<int64_t> places[2];
  for (int64_t r = 0; r < rows; ++r) {
    for (const auto& offset : stencil.offsets) {
      const int64_t row = stencil.neighbour_row(first + r, offset);
      if (row < 0) continue;
      plan.offsets[r].push_back(offset);
      places[r].push_back((row - first) * layout.pitch + offset.dx);
    }
  }
  // Merged as ordered lists are: what is in both is found where both are in order, and each keeps its own order.
  auto one = places[0].begin(), two = places[1].begin();
  while (one != places[0].end() || two != places[1].end()) {
    const bool of_first = two == places[1].end() || (one != places[0].end() && *one <= *two);
    const bool of_second = one == places[0].end() || (two != places[1].end() && *two <= *one);
    plan.places.push_back(of_first ? *one : *two);
    if (plan.segments.empty() || plan.segments.back().of_first != of_first ||
        plan.segments.back().of_second != of_second)
      plan.segments.push_back({0, of_first, of_second});
    ++plan.segments.back().count;
    if (of_first) ++one;
    if (of_second) ++two;
  }
  return plan;
}

}  // namespace

Stencil::Stencil(const std::vector<int64_t>& grid, const std::vector<int64_t>& pairs, bool clamp)
    : height(grid[0]), width(grid[1]), clamp(clamp), reach(0) {
  for (int64_t column = 0; column < static_cast<int64_t>(pairs.size()) / 2; ++column) {
    StencilOffset offset = {pairs[2 * column], pairs[2 * column + 1], column};
    const bool is_reachable = std::abs(offset.dy) < height && std::abs(offset.dx) < width;
    if (!clamp && !is_reachable) continue;
    // further out there is only the last token again
    offset.dy = std::clamp(offset.dy, 1 - height, height - 1);
    offset.dx = std::clamp(offset.dx, 1 - width, width - 1);
    reach = std::max(reach, std::abs(offset.dx));
    offsets.push_back(offset);
  }
}

int64_t Stencil::neighbour_row(int64_t y, const StencilOffset& offset) const {
  const int64_t row = y + offset.dy;
  if (clamp) return std::clamp<int64_t>(row, 0, height - 1);
  return row >= 0 && row < height ? row : -1;
}

PlaneLayout::PlaneLayout(const Stencil& stencil, int64_t number_bytes, int64_t tokens_at_once) {
  const int64_t line = kLineBytes / number_bytes;
  left = round_up(stencil.reach, line);
  pitch = (ceil_div(left + round_up(stencil.width, tokens_at_once) + stencil.reach, line) | 1) * line;
  plane = (stencil.height * pitch / line | 1) * line;
}

StencilPlans::StencilPlans(const Stencil& stencil, const PlaneLayout& layout)
    : rows_at_once_(stencil.height > 1 && shares_neighbours(stencil) ? 2 : 1) {
  for (const auto& offset : stencil.offsets) {
    above_ = std::max(above_, -offset.dy);
    below_ = std::max(below_, offset.dy);
  }
  int64_t inner = -1;  // the plan of rows that lie away from both borders
  for (int64_t y = 0; y < stencil.height; y += rows_at_once_) {
    const int64_t rows = std::min(rows_at_once_, stencil.height - y);
    const bool is_inner = y >= above_ && y + rows + below_ <= stencil.height && rows == rows_at_once_;
    if (!is_inner || inner < 0) {
      plans_.push_back(make_plan(stencil, layout, y, rows));
      if (is_inner) inner = static_cast<int64_t>(plans_.size()) - 1;
    }
    plan_of_.push_back(is_inner ? inner : static_cast<int64_t>(plans_.size()) - 1);
  }
}

}  // namespace nerve_kernels::cpu
