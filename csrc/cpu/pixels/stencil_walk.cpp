// The walk on window values at any offsets: planes of labels, tiles of tokens, threads.

#include "stencil_walk.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>

#include "../checks.h"
#include "../dtypes.h"
#include "../kernels/kernels.h"
#include "../walk/labels.h"
#include "../walk/walk_problem.h"
#include "../work_stealing.h"
#include "planes.h"
#include "stencil.h"
#include "stencil_weights.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// The labels that walk at a time are those that planes of so many bytes hold: each label walks by itself.
constexpr int64_t kPlaneBytes = int64_t{64} << 20;
constexpr int64_t kTokensPerTask = 256;

template <typename Number>
class StencilWalk {
 public:
  StencilWalk(const Stencil& stencil, const MatrixBatch& values, const Tensor& like, double alpha)
      : stencil_(stencil), values_(values), layout_(stencil, sizeof(Number), 2 * kernels_.lanes),
        plans_(stencil, layout_), tiles_(stencil, plans_.rows_at_once(), sizeof(Number)), alpha_(alpha) {
    const int64_t labels = like.size(2), block = kernels_.stencil_labels;
    const int64_t fitting = kPlaneBytes / (layout_.plane * static_cast<int64_t>(sizeof(Number))) / block * block;
    labels_at_once_ = std::min(labels, std::max(block, fitting));
    p_ = Planes<Number>(like, stencil, layout_, labels_at_once_);
    next_ = Planes<Number>(like, stencil, layout_, labels_at_once_);
    if (alpha != 1) restart_ = Planes<Number>(like, stencil, layout_, labels_at_once_);
  }

  // P after one step or more, of one image, to `out` (N, C).
  void run(const MatrixBatch& seeds, const MatrixBatch& start, int64_t image, int64_t steps, Number* out) {
    const int64_t all = start.columns;
    for (int64_t first = 0; first < all; first += labels_at_once_) {
      const int64_t labels = std::min(labels_at_once_, all - first);
      p_.load(start, image, first, labels, Number(1));
      if (alpha_ != 1) restart_.load(seeds, image, first, labels, static_cast<Number>(1 - alpha_));
      for (int64_t step = 1; step < steps; ++step) {
        take_step(image, labels, nullptr, 0);
        std::swap(p_, next_);
      }
      take_step(image, labels, out + first, all);
    }
  }

 private:
  // To the other planes, or to tokens with labels side by side, `out_stride` apart.
  void take_step(int64_t image, int64_t labels, Number* out, int64_t out_stride) {
    const int64_t block = kernels_.stencil_labels;
    for_each_task(tiles_.count(), [&](auto next) {
      StencilWeights<Number> weights(stencil_, plans_, tiles_, values_, static_cast<Number>(alpha_), kernels_.lanes);
      std::vector<Number> results(out == nullptr ? 0 : 2 * block * tiles_.columns);
      for (int64_t task; next(task);) {
        const Tile tile = tiles_.at(task);
        weights.gather(image, tile);
        for (int64_t label = 0; label < labels; label += block) {
          const int64_t count = std::min(block, labels - label);
          for (int64_t row = 0, rows; row < tile.rows; row += rows) {
            rows = std::min(plans_.rows_at_once(), tile.rows - row);
            const int64_t at = label * layout_.plane + layout_.at(tile.y + row, tile.x);
            const StencilPlan& plan = plans_.at(tile.y + row);
            StencilRows<Number> work = {.weights = {weights.row(row), rows == 2 ? weights.row(row + 1) : nullptr},
                                        .places = plan.places.data(),
                                        .segments = plan.segments.data(),
                                        .num_segments = static_cast<int64_t>(plan.segments.size()),
                                        .p = p_.data() + at,
                                        .restart = alpha_ == 1 ? nullptr : restart_.data() + at,
                                        .plane_stride = layout_.plane,
                                        .row_stride = layout_.pitch,
                                        .labels = count,
                                        .tokens = tile.columns,
                                        .rows = rows,
                                        .out = next_.data() + at,
                                        .out_stride = layout_.plane,
                                        .out_row_stride = layout_.pitch};
            if (out != nullptr) {
              work.out = results.data();
              work.out_stride = 2 * tiles_.columns;
              work.out_row_stride = tiles_.columns;
            }
            kernels_.stencil_product(work);
            for (int64_t r = 0; out != nullptr && r < rows; ++r) {
              const Number* from = results.data() + r * tiles_.columns;
              Number* to = out + ((tile.y + row + r) * stencil_.width + tile.x) * out_stride + label;
              for (int64_t x = 0; x < tile.columns; ++x, to += out_stride)
                for (int64_t c = 0; c < count; ++c) to[c] = from[c * 2 * tiles_.columns + x];
            }
          }
        }
        if (out != nullptr) continue;
        if (tile.x == 0) next_.fill_left(tile.y, tile.rows, labels);
        if (tile.x + tile.columns == stencil_.width) next_.fill_right(tile.y, tile.rows, labels);
      }
    });
  }

  const KernelsOf<Number>& kernels_ = best_kernels_of<Number>();
  const Stencil& stencil_;
  const MatrixBatch& values_;
  const PlaneLayout layout_;
  const StencilPlans plans_;
  const Tiles tiles_;
  const double alpha_;
  int64_t labels_at_once_ = 0;
  Planes<Number> p_, next_, restart_;
};

// Numbers to the dtype of the result, rows divided by their sums where asked for.
template <typename Number>
Tensor finish(Tensor wide, ScalarType dtype, bool normalize) {
  if (wide.scalar_type() == dtype && !normalize) return wide;
  const int64_t labels = wide.size(2), tokens = wide.size(1), tasks = ceil_div(tokens, kTokensPerTask);
  Tensor out = wide.scalar_type() == dtype ? wide : torch::stable::new_empty(wide, {wide.size(0), tokens, labels}, dtype);
  auto* data = static_cast<Number*>(wide.mutable_data_ptr());
  torch::stable::parallel_for(0, wide.size(0) * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / tasks, first = task % tasks * kTokensPerTask;
      const int64_t count = std::min(kTokensPerTask, tokens - first);
      store_labels(data + (image * tokens + first) * labels, labels, image, first, count, normalize, out);
    }
  });
  return out;
}

}  // namespace

Tensor stencil_walk(Tensor seeds, std::optional<Tensor> start, Tensor values, std::vector<int64_t> grid,
                    std::vector<int64_t> offsets, bool clamp, double alpha, int64_t steps, bool normalize) {
  STD_TORCH_CHECK(seeds.dim() == 3, "seeds: expected (B, N, C), got ", seeds.dim(), " dimensions");
  check_grid(grid, seeds.size(1), "seeds");
  STD_TORCH_CHECK(offsets.size() % 2 == 0, "offsets: expected pairs (dy, dx), got ", offsets.size(), " numbers");
  STD_TORCH_CHECK(steps >= 0, "steps: expected 0 or more, got ", steps);
  const int64_t batch = seeds.size(0), tokens = seeds.size(1), labels = seeds.size(2);
  with_dtype(seeds.scalar_type(), "seeds", [](auto) {});
  check_part(values, "values", batch, tokens, static_cast<int64_t>(offsets.size()) / 2);
  if (start.has_value()) {
    check_part(*start, "start", batch, tokens, labels);
    STD_TORCH_CHECK(start->size(0) == batch, "start: expected the batch of seeds, ", batch, ", got ", start->size(0));
  }
  const Tensor& first = start.has_value() ? *start : seeds;
  Tensor out = seeds;
  with_number(is_double(seeds) || is_double(first) || is_double(values), [&](auto number) {
    using Number = decltype(number);
    if (steps == 0 || seeds.numel() == 0) {  // a copy, never the caller's own
      out = finish<Number>(pack_labels<Number>(first, labels), seeds.scalar_type(), normalize);
      return;
    }
    Tensor wide = torch::stable::new_empty(seeds, {batch, tokens, labels}, dtype_of<Number>);
    const Stencil stencil(grid, offsets, clamp);
    const MatrixBatch weights(values), from(first), restart(seeds);
    StencilWalk<Number> walk(stencil, weights, seeds, alpha);
    for (int64_t image = 0; image < batch; ++image)
      walk.run(restart, from, image, steps, static_cast<Number*>(wide.mutable_data_ptr()) + image * tokens * labels);
    out = finish<Number>(wide, seeds.scalar_type(), normalize);
  });
  return out;
}

}  // namespace nerve_kernels::cpu
