#pragma once

// restart + factor * S P for planes of labels, tile by tile, on all threads: what a walk and a solver repeat.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../kernels/kernels.h"
#include "../work_stealing.h"
#include "planes.h"
#include "stencil.h"
#include "stencil_weights.h"

namespace nerve_kernels::cpu {

template <typename Number>
class StencilStep {
 public:
  // `factor` times S, of the values of a batch of images.
  StencilStep(const Stencil& stencil, const MatrixBatch& values, double factor)
      : stencil_(stencil), values_(values), factor_(static_cast<Number>(factor)),
        layout_(stencil, sizeof(Number), 2 * kernels_.lanes), plans_(stencil, layout_),
        tiles_(stencil, plans_.rows_at_once(), sizeof(Number)) {}

  const PlaneLayout& layout() const { return layout_; }
  int64_t num_tiles() const { return tiles_.count(); }

  // As many labels as planes of so many bytes hold, in whole blocks of the kernel.
  int64_t labels_within(int64_t bytes) const {
    const int64_t block = kernels_.stencil_labels;
    return std::max(block, bytes / (layout_.plane * static_cast<int64_t>(sizeof(Number))) / block * block);
  }

  // To planes, their ends not yet filled. `restart`, if there is one, may be P itself. `finish(tile, index)` is called
  // when all labels of a tile are done.
  template <typename Finish>
  void to_planes(int64_t image, int64_t labels, const Number* p, const Number* restart, Number* out,
                 const Finish& finish) const {
    for_tiles(image, [&](const StencilWeights<Number>& weights, const Tile& tile, int64_t index) {
      for_blocks(weights, image, index, labels, p, restart, [&](StencilRows<Number>& work, int64_t, int64_t, int64_t at) {
        work.out = out + at;
        work.out_stride = layout_.plane;
        work.out_row_stride = layout_.pitch;
        kernels_.stencil_product(work);
      });
      finish(tile, index);
    });
  }

  // To tokens with their labels side by side, `out_stride` apart.
  void to_tokens(int64_t image, int64_t labels, const Number* p, const Number* restart, Number* out,
                 int64_t out_stride) const {
    const int64_t width = tiles_.columns;
    for_tiles(image, [&](const StencilWeights<Number>& weights, const Tile& tile, int64_t index) {
      std::vector<Number> results(2 * kernels_.stencil_labels * width);
      for_blocks(weights, image, index, labels, p, restart,
                 [&](StencilRows<Number>& work, int64_t label, int64_t row, int64_t) {
                   work.out = results.data();
                   work.out_stride = 2 * width;
                   work.out_row_stride = width;
                   kernels_.stencil_product(work);
                   for (int64_t r = 0; r < work.rows; ++r) {
                     Number* to = out + ((tile.y + row + r) * stencil_.width + tile.x) * out_stride + label;
                     for (int64_t x = 0; x < tile.columns; ++x, to += out_stride)
                       for (int64_t c = 0; c < work.labels; ++c) to[c] = results[(2 * c + r) * width + x];
                   }
                 });
    });
  }

 private:
  template <typename Work>
  void for_tiles(int64_t image, const Work& work) const {
    for_each_task(tiles_.count(), [&](auto next) {
      StencilWeights<Number> weights(stencil_, plans_, tiles_, values_, factor_, kernels_.lanes);
      for (int64_t task; next(task);) {
        const Tile tile = tiles_.at(task);
        weights.gather(image, tile);
        work(weights, tile, task);
      }
    });
  }

  // Calls `compute(work, label, row, at)` for some rows of some labels, whose first token lies at `at` in planes.
  template <typename Compute>
  void for_blocks(const StencilWeights<Number>& weights, int64_t image, int64_t index, int64_t labels, const Number* p,
                  const Number* restart, const Compute& compute) const {
    const Tile tile = tiles_.at(index);
    for (int64_t label = 0; label < labels; label += kernels_.stencil_labels) {
      for (int64_t row = 0, rows; row < tile.rows; row += rows) {
        rows = std::min(plans_.rows_at_once(), tile.rows - row);
        const int64_t at = label * layout_.plane + layout_.at(tile.y + row, tile.x);
        const StencilPlan& plan = plans_.at(tile.y + row);
        StencilRows<Number> work = {.weights = {weights.row(row), rows == 2 ? weights.row(row + 1) : nullptr},
                                    .places = plan.places.data(),
                                    .segments = plan.segments.data(),
                                    .num_segments = static_cast<int64_t>(plan.segments.size()),
                                    .p = p + at,
                                    .restart = restart == nullptr ? nullptr : restart + at,
                                    .plane_stride = layout_.plane,
                                    .row_stride = layout_.pitch,
                                    .labels = std::min(kernels_.stencil_labels, labels - label),
                                    .tokens = tile.columns,
                                    .rows = rows,
                                    .out = nullptr,
                                    .out_stride = 0,
                                    .out_row_stride = 0};
        compute(work, label, row, at);
        fetch_ahead(weights, image, index, labels, label, row, p);
      }
    }
  }

  // While some rows of some labels are computed: a part of what comes next, which no prefetcher of the processor could
  // guess, the weights of the next tile and P of the next labels.
  void fetch_ahead(const StencilWeights<Number>& weights, int64_t image, int64_t index, int64_t labels, int64_t label,
                   int64_t row, const Number* p) const {
    const int64_t block = kernels_.stencil_labels, at_once = plans_.rows_at_once();
    const int64_t tile_parts = tiles_.rows / at_once, part = row / at_once;
    const bool is_last = label + block >= labels;
    if (is_last && index + 1 == tiles_.count()) return;
    const Tile tile = tiles_.at(is_last ? index + 1 : index);
    if (index + 1 < tiles_.count())
      weights.prefetch(image, tiles_.at(index + 1), label / block * tile_parts + part,
                       (labels + block - 1) / block * tile_parts);
    const int64_t next = is_last ? 0 : label + block, count = std::min(block, labels - next);
    const int64_t top = std::max<int64_t>(0, tile.y - plans_.above());
    const int64_t rows = std::min(stencil_.height, tile.y + tile.rows + plans_.below()) - top;
    constexpr int64_t kLine = 64 / sizeof(Number);
    for (int64_t i = count * rows * part / tile_parts; i < count * rows * (part + 1) / tile_parts; ++i) {
      const Number* from = p + (next + i / rows) * layout_.plane + layout_.at(top + i % rows, tile.x);
      for (int64_t x = -stencil_.reach; x < tile.columns + stencil_.reach + kLine; x += kLine)
        __builtin_prefetch(from + x, 0, 2);
    }
  }

  const KernelsOf<Number>& kernels_ = best_kernels_of<Number>();
  const Stencil& stencil_;
  const MatrixBatch& values_;
  const Number factor_;
  const PlaneLayout layout_;
  const StencilPlans plans_;
  const Tiles tiles_;
};

}  // namespace nerve_kernels::cpu
