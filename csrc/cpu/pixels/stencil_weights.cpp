// Window values of any strides and dtype to vectors of tokens.

#include "stencil_weights.h"

#include <algorithm>
#include <cstring>

#include "../checks.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kTileColumns = 64, kMaxTileRows = 16;
constexpr int64_t kTileBytes = 192 << 10;

}  // namespace

Tiles::Tiles(const Stencil& stencil, int64_t rows_at_once, int64_t number_bytes)
    : height(stencil.height), width(stencil.width), columns(std::min(kTileColumns, round_up(stencil.width, 16))) {
  const int64_t row_bytes = std::max<int64_t>(1, stencil.offsets.size()) * columns * number_bytes;
  rows = std::clamp<int64_t>(kTileBytes / row_bytes, 1, std::min(kMaxTileRows, height));
  rows = round_up(rows, rows_at_once);
}

Tile Tiles::at(int64_t index) const {
  const int64_t y = index / across() * rows, x = index % across() * columns;
  return {y, x, std::min(rows, height - y), std::min(columns, width - x)};
}

template <typename Number>
StencilWeights<Number>::StencilWeights(const Stencil& stencil, const StencilPlans& plans, const Tiles& tiles,
                                       const MatrixBatch& values, Number factor, int64_t lanes)
    : stencil_(stencil), plans_(plans), values_(values), factor_(factor), lanes_(lanes),
      row_stride_(round_up(tiles.columns, 2 * lanes) * static_cast<int64_t>(stencil.offsets.size())),
      buffer_(tiles.rows * row_stride_), tokens_(round_up(tiles.columns, 2 * lanes)) {}

template <typename Number>
void StencilWeights<Number>::gather(int64_t image, const Tile& tile) {
  const int64_t at_once = plans_.rows_at_once();
  for (int64_t row = 0; row < tile.rows; ++row)
    gather_row(image, tile, row, plans_.at(tile.y + row).offsets[(tile.y + row) % at_once]);
}

template <typename Number>
void StencilWeights<Number>::gather_row(int64_t image, const Tile& tile, int64_t row,
                                        const std::vector<StencilOffset>& offsets) {
  // a single row is computed two vectors at a time
  const bool is_paired = plans_.rows_at_once() == 2 && (tile.y + row) / 2 * 2 + 1 < stencil_.height;
  const int64_t group = is_paired ? lanes_ : 2 * lanes_, group_stride = group * static_cast<int64_t>(offsets.size());
  const int64_t first_token = (tile.y + row) * stencil_.width + tile.x, step = values_.row_stride;
  Number* out = buffer_.data() + row * row_stride_;
  with_dtype(values_.dtype, "values", [&](auto stored) {
    for (const StencilOffset& offset : offsets) {
      const auto* from = reinterpret_cast<const decltype(stored)*>(values_.at(image, first_token, offset.column));
      int64_t begin = 0, end = tile.columns;
      if (!stencil_.clamp) {
        begin = std::clamp<int64_t>(-tile.x - offset.dx, 0, tile.columns);
        end = std::clamp<int64_t>(stencil_.width - tile.x - offset.dx, begin, tile.columns);
      }
      if (begin > 0 || end < static_cast<int64_t>(tokens_.size())) std::fill(tokens_.begin(), tokens_.end(), Number(0));
      if (step == 1)
        for (int64_t x = begin; x < end; ++x) tokens_[x] = static_cast<Number>(from[x]) * factor_;
      else
        for (int64_t x = begin; x < end; ++x) tokens_[x] = static_cast<Number>(from[x * step]) * factor_;
      for (int64_t x = 0; x < tile.columns; x += group)
        std::memcpy(out + x / group * group_stride, tokens_.data() + x, group * sizeof(Number));
      out += group;
    }
  });
}

template class StencilWeights<float>;
template class StencilWeights<double>;

}  // namespace nerve_kernels::cpu
