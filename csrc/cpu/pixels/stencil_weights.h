#pragma once

// The window values of a tile of tokens as kernels/stencil_product.h reads them.

#include <cstdint>
#include <vector>

#include "../walk/walk_problem.h"
#include "stencil.h"

namespace nerve_kernels::cpu {

struct Tile {
  int64_t y, x, rows, columns;
};

// The grid in tiles: as few columns as keep neighbours in cache from row to row, as many rows as keep the tile's weights
// in cache from one block of labels to the next.
struct Tiles {
  int64_t height, width, rows, columns;

  Tiles(const Stencil& stencil, int64_t rows_at_once, int64_t number_bytes);
  int64_t across() const { return (width + columns - 1) / columns; }
  int64_t count() const { return (height + rows - 1) / rows * across(); }
  Tile at(int64_t index) const;
};

// One thread's buffer for the weights of a tile.
template <typename Number>
class StencilWeights {
 public:
  StencilWeights(const Stencil& stencil, const StencilPlans& plans, const Tiles& tiles, const MatrixBatch& values,
                 Number factor, int64_t lanes);

  // `factor` times the values of one image's tile; zeros where a neighbour is outside the grid.
  void gather(int64_t image, const Tile& tile);
  // One of so many parts of what gather will read, ahead of time.
  void prefetch(int64_t image, const Tile& tile, int64_t part, int64_t parts) const;
  // Of row `row` of the tile.
  const Number* row(int64_t row) const { return buffer_.data() + row * row_stride_; }

 private:
  void gather_row(int64_t image, const Tile& tile, int64_t row, const std::vector<StencilOffset>& offsets);

  const Stencil& stencil_;
  const StencilPlans& plans_;
  const MatrixBatch& values_;
  const Number factor_;
  const int64_t lanes_;
  const int64_t row_stride_;
  std::vector<Number> buffer_, tokens_;
};

}  // namespace nerve_kernels::cpu
