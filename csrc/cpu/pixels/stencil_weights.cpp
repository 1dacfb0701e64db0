// Window values of any strides and dtype to vectors of tokens.

#include "stencil_weights.h"

#include <algorithm>

#include "../checks.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kTileColumns = 64, kMaxTileRows = 16;
constexpr int64_t kTileBytes = 192 << 10;

template <int64_t kGroup, typename Stored, typename Number>
void copy_groups_of(const Stored* from, Number factor, int64_t count, int64_t stride, Number* out) {
  for (int64_t x = 0; x < count; x += kGroup, out += stride)
    for (int64_t i = 0; i < kGroup; ++i) out[i] = static_cast<Number>(from[x + i]) * factor;
}

// `count` tokens, or whole groups of them, in groups `stride` apart.
template <typename Stored, typename Number>
void copy_groups(const Stored* from, Number factor, int64_t count, int64_t group, int64_t stride, Number* out) {
  switch (group) {
    case 2: return copy_groups_of<2>(from, factor, count, stride, out);
    case 4: return copy_groups_of<4>(from, factor, count, stride, out);
    case 8: return copy_groups_of<8>(from, factor, count, stride, out);
    case 16: return copy_groups_of<16>(from, factor, count, stride, out);
    default: return copy_groups_of<32>(from, factor, count, stride, out);
  }
}

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
  const int64_t group = is_paired ? lanes_ : 2 * lanes_, stride = group * static_cast<int64_t>(offsets.size());
  const int64_t first_token = (tile.y + row) * stencil_.width + tile.x, step = values_.row_stride;
  Number* out = buffer_.data() + row * row_stride_;
  with_dtype(values_.dtype, "values", [&](auto stored) {
    using Stored = decltype(stored);
    for (const StencilOffset& offset : offsets) {
      const auto* from = reinterpret_cast<const Stored*>(values_.at(image, first_token, offset.column));
      int64_t begin = 0, end = tile.columns;
      if (!stencil_.clamp) {
        begin = std::clamp<int64_t>(-tile.x - offset.dx, 0, tile.columns);
        end = std::clamp<int64_t>(stencil_.width - tile.x - offset.dx, begin, tile.columns);
      }
      if (step == 1 && begin == 0 && end % group == 0 && end == tile.columns) {
        copy_groups(from, factor_, end, group, stride, out);
      } else {
        std::fill(tokens_.begin(), tokens_.end(), Number(0));
        for (int64_t x = begin; x < end; ++x) tokens_[x] = static_cast<Number>(from[x * step]) * factor_;
        copy_groups(tokens_.data(), Number(1), tile.columns, group, stride, out);
      }
      out += group;
    }
  });
}

template <typename Number>
void StencilWeights<Number>::prefetch(int64_t image, const Tile& tile, int64_t part, int64_t parts) const {
  if (values_.row_stride != 1) return;
  const int64_t count = tile.rows * values_.columns, line = 64 / values_.element_size;
  for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const int64_t token = (tile.y + i / values_.columns) * stencil_.width + tile.x;
    for (int64_t x = 0; x < tile.columns; x += line)
      __builtin_prefetch(values_.at(image, token + x, i % values_.columns), 0, 2);
  }
}

template class StencilWeights<float>;
template class StencilWeights<double>;

}  // namespace nerve_kernels::cpu
