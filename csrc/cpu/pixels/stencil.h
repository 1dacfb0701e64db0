#pragma once

// Offsets on a grid, the room that planes of labels need for them, and what the rows of tokens do with them.

#include <cstdint>
#include <vector>

#include "../kernels/pixels.h"

namespace nerve_kernels::cpu {

struct StencilOffset {
  int64_t dy, dx;
  int64_t column;  // of the values
};

struct Stencil {
  int64_t height, width;
  bool clamp;                          // a neighbour outside the grid is the nearest token inside; else there is none
  std::vector<StencilOffset> offsets;  // those that reach a token from somewhere, in the order of their columns
  int64_t reach;                       // the largest |dx|

  Stencil(const std::vector<int64_t>& grid, const std::vector<int64_t>& pairs, bool clamp);
  // The grid row that a neighbour of row y lies in, or -1.
  int64_t neighbour_row(int64_t y, const StencilOffset& offset) const;
};

// A plane: grid rows with room at both ends for the neighbours that the first and the last token reach, so that a
// neighbour needs no test for the border. Rows and planes are odd numbers of cache lines apart: they share no sets.
struct PlaneLayout {
  int64_t left, pitch, plane;  // in numbers

  PlaneLayout(const Stencil& stencil, int64_t number_bytes, int64_t tokens_at_once);
  int64_t at(int64_t y, int64_t x) const { return y * pitch + left + x; }
};

// What one row of tokens, or two, do for all their tokens alike.
struct StencilPlan {
  std::vector<StencilOffset> offsets[2];  // of each row: those that stay on the grid
  std::vector<int64_t> places;
  std::vector<StencilSegment> segments;
};

// Rows of tokens in pairs, where neighbours are worth sharing, else one by one.
class StencilPlans {
 public:
  StencilPlans(const Stencil& stencil, const PlaneLayout& layout);

  int64_t rows_at_once() const { return rows_at_once_; }
  // How many rows up and down neighbours are.
  int64_t above() const { return above_; }
  int64_t below() const { return below_; }
  const StencilPlan& at(int64_t y) const { return plans_[plan_of_[y / rows_at_once_]]; }

 private:
  int64_t rows_at_once_, above_ = 0, below_ = 0;
  std::vector<StencilPlan> plans_;
  std::vector<int64_t> plan_of_;
};

}  // namespace nerve_kernels::cpu
