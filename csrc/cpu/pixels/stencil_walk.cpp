// The walk on window values at any offsets: planes of labels, tiles of tokens, threads.

#include "stencil_walk.h"


#include <algorithm>
#include <utility>

#include "../allocation.h"
#include "../checks.h"
#include "../dtypes.h"
#include "../walk/labels.h"
#include "../walk/walk_problem.h"
#include "planes.h"
#include "stencil.h"
#include "stencil_step.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// The labels that walk at a time are those that planes of so many bytes hold: each label walks by itself.
constexpr int64_t kPlaneBytes = int64_t{64} << 20;

template <typename Number>
class StencilWalk {
 public:
  StencilWalk(const Stencil& stencil, const MatrixBatch& values, const Tensor& like, double alpha)
      : stencil_(stencil), step_(stencil, values, alpha), alpha_(alpha),
        labels_at_once_(std::min(like.size(2), step_.labels_within(kPlaneBytes))),
        p_(like, stencil, step_.layout(), labels_at_once_), next_(like, stencil, step_.layout(), labels_at_once_) {
    if (alpha != 1) restart_ = Planes<Number>(like, stencil, step_.layout(), labels_at_once_);
  }

  // P after one step or more, of one image, to `out` (N, C).
  void run(const MatrixBatch& seeds, const MatrixBatch& start, int64_t image, int64_t steps, Number* out) {
    const int64_t all = start.columns;
    for (int64_t first = 0; first < all; first += labels_at_once_) {
      const int64_t labels = std::min(labels_at_once_, all - first);
      p_.load(start, image, first, labels, Number(1));
      if (alpha_ != 1) restart_.load(seeds, image, first, labels, static_cast<Number>(1 - alpha_));
      for (int64_t step = 1; step < steps; ++step) {
        step_.to_planes(image, labels, p_.data(), restart_.data(), next_.data(), [&](const Tile& tile, int64_t) {
          if (tile.x == 0) next_.fill_left(tile.y, tile.rows, labels);
          if (tile.x + tile.columns == stencil_.width) next_.fill_right(tile.y, tile.rows, labels);
        });
        std::swap(p_, next_);
      }
      step_.to_tokens(image, labels, p_.data(), restart_.data(), out + first, all);
    }
  }

 private:
  const Stencil& stencil_;
  const StencilStep<Number> step_;
  const double alpha_;
  const int64_t labels_at_once_;
  Planes<Number> p_, next_, restart_;
};

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
      out = finish_labels<Number>(pack_labels<Number>(first, labels), seeds.scalar_type(), normalize);
      return;
    }
    Tensor wide = allocate(seeds, {batch, tokens, labels}, dtype_of<Number>);
    const Stencil stencil(grid, offsets, clamp);
    const MatrixBatch weights(values), from(first), restart(seeds);
    StencilWalk<Number> walk(stencil, weights, seeds, alpha);
    for (int64_t image = 0; image < batch; ++image)
      walk.run(restart, from, image, steps, static_cast<Number*>(wide.mutable_data_ptr()) + image * tokens * labels);
    out = finish_labels<Number>(wide, seeds.scalar_type(), normalize);
  });
  return out;
}

}  // namespace nerve_kernels::cpu
