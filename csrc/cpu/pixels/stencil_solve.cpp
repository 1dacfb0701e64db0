// Conjugate gradients on planes of labels: a product with S and two passes over the planes an iteration.
//
// Sums are taken tile by tile or row by row and added in that order: results do not depend on the number of threads.

#include "stencil_solve.h"


#include <algorithm>

#include "../allocation.h"
#include "../checks.h"
#include "../dtypes.h"
#include "../walk/labels.h"
#include "planes.h"
#include "stencil.h"
#include "stencil_step.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// Five planes a label: those of so many bytes each hold the labels that are solved at a time.
constexpr int64_t kPlaneBytes = int64_t{64} << 20;

template <typename Number>
double dot(const Number* a, const Number* b, int64_t count) {
  constexpr int64_t kSums = 8;
  Number sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int64_t k = 0; k < kSums; ++k) sums[k] += a[i + k] * b[i + k];
  for (; i < count; ++i) sums[i % kSums] += a[i] * b[i];
  double total = 0;
  for (const Number sum : sums) total += sum;
  return total;
}

template <typename Number>
class StencilSolve {
 public:
  StencilSolve(const Stencil& stencil, const MatrixBatch& values, const Tensor& like, double alpha)
      : stencil_(stencil), step_(stencil, values, -alpha), layout_(step_.layout()),
        labels_at_once_(std::min(like.size(2), step_.labels_within(kPlaneBytes))) {
    for (auto* planes : {&x_, &residual_, &direction_, &image_})
      *planes = Planes<Number>(like, stencil, layout_, labels_at_once_);
  }

  void run(const MatrixBatch& right, int64_t image, int64_t iterations, double tolerance, Number* out) {
    for (int64_t first = 0; first < right.columns; first += labels_at_once_) {
      labels_ = std::min(labels_at_once_, right.columns - first);
      for (auto* planes : {&residual_, &direction_}) planes->load(right, image, first, labels_, Number(1));
      solve(image, iterations, tolerance);
      x_.store(labels_, out + first, right.columns);
    }
  }

 private:
  void solve(int64_t image, int64_t iterations, double tolerance) {
    for_rows([&](Number* x, Number*, Number*, Number*, int64_t) { std::fill(x, x + stencil_.width, Number(0)); });
    std::vector<double> square = row_sums(
        [&](Number*, Number* residual, Number*, Number*, int64_t) { return dot(residual, residual, stencil_.width); });
    std::vector<double> goal(labels_), length(labels_), ratio(labels_);
    for (int64_t c = 0; c < labels_; ++c) goal[c] = tolerance * tolerance * square[c];
    for (int64_t count = 0; count < iterations; ++count) {
      const std::vector<double> curvature = apply(image);
      bool is_done = true;
      for (int64_t c = 0; c < labels_; ++c) {
        // a label that is done takes no further step
        const bool goes_on = square[c] > goal[c] && curvature[c] != 0;
        length[c] = goes_on ? square[c] / curvature[c] : 0;
        is_done = is_done && !goes_on;
      }
      if (is_done) return;
      const std::vector<double> next =
          row_sums([&](Number*, Number* residual, Number*, Number* image_of_direction, int64_t c) {
            const Number step = static_cast<Number>(length[c]);
            for (int64_t i = 0; i < stencil_.width; ++i) residual[i] -= step * image_of_direction[i];
            return dot(residual, residual, stencil_.width);
          });
      for (int64_t c = 0; c < labels_; ++c) ratio[c] = square[c] > 0 ? next[c] / square[c] : 0;
      for_rows([&](Number* x, Number* residual, Number* direction, Number*, int64_t c) {
        const Number step = static_cast<Number>(length[c]), share = static_cast<Number>(ratio[c]);
        for (int64_t i = 0; i < stencil_.width; ++i) {
          x[i] += step * direction[i];
          direction[i] = residual[i] + share * direction[i];
        }
      });
      square = next;
    }
  }

  // image = direction - alpha S direction; returns direction . image of each label.
  std::vector<double> apply(int64_t image) {
    std::vector<double> parts(step_.num_tiles() * labels_);
    Number *p = direction_.data(), *out = image_.data();
    step_.to_planes(image, labels_, p, p, out, [&](const Tile& tile, int64_t index) {
      for (int64_t c = 0; c < labels_; ++c) {
        for (int64_t row = 0; row < tile.rows; ++row) {
          const int64_t at = c * layout_.plane + layout_.at(tile.y + row, tile.x);
          parts[index * labels_ + c] += dot(p + at, out + at, tile.columns);
        }
      }
    });
    return sums_of(parts);
  }

  // Calls `work(x, residual, direction, image, label)` with every row of every plane; fills the ends of direction.
  template <typename Work>
  void for_rows(const Work& work) {
    for_each_task(stencil_.height, [&](auto next) {
      for (int64_t y; next(y);) {
        for (int64_t c = 0; c < labels_; ++c) {
          const int64_t at = c * layout_.plane + layout_.at(y, 0);
          work(x_.data() + at, residual_.data() + at, direction_.data() + at, image_.data() + at, c);
        }
        direction_.fill_left(y, 1, labels_);
        direction_.fill_right(y, 1, labels_);
      }
    });
  }

  template <typename Work>
  std::vector<double> row_sums(const Work& work) {
    std::vector<double> parts(stencil_.height * labels_);
    for_each_task(stencil_.height, [&](auto next) {
      for (int64_t y; next(y);) {
        for (int64_t c = 0; c < labels_; ++c) {
          const int64_t at = c * layout_.plane + layout_.at(y, 0);
          parts[y * labels_ + c] =
              work(x_.data() + at, residual_.data() + at, direction_.data() + at, image_.data() + at, c);
        }
      }
    });
    return sums_of(parts);
  }

  std::vector<double> sums_of(const std::vector<double>& parts) const {
    std::vector<double> sums(labels_);
    for (size_t i = 0; i < parts.size(); ++i) sums[i % labels_] += parts[i];
    return sums;
  }

  const Stencil& stencil_;
  const StencilStep<Number> step_;
  const PlaneLayout layout_;
  const int64_t labels_at_once_;
  int64_t labels_ = 0;
  Planes<Number> x_, residual_, direction_, image_;
};

}  // namespace

Tensor stencil_solve(Tensor right, Tensor values, std::vector<int64_t> grid, std::vector<int64_t> offsets, bool clamp,
                     double alpha, int64_t iterations, double tolerance) {
  STD_TORCH_CHECK(right.dim() == 3, "right: expected (B, N, C), got ", right.dim(), " dimensions");
  check_grid(grid, right.size(1), "right");
  STD_TORCH_CHECK(offsets.size() % 2 == 0, "offsets: expected pairs (dy, dx), got ", offsets.size(), " numbers");
  STD_TORCH_CHECK(iterations >= 0, "iterations: expected 0 or more, got ", iterations);
  const int64_t batch = right.size(0), tokens = right.size(1), labels = right.size(2);
  with_dtype(right.scalar_type(), "right", [](auto) {});
  check_part(values, "values", batch, tokens, static_cast<int64_t>(offsets.size()) / 2);
  Tensor out = right;
  with_number(is_double(right) || is_double(values), [&](auto number) {
    using Number = decltype(number);
    Tensor wide = allocate(right, {batch, tokens, labels}, dtype_of<Number>);
    if (wide.numel() > 0) {
      const Stencil stencil(grid, offsets, clamp);
      const MatrixBatch weights(values), from(right);
      StencilSolve<Number> solve(stencil, weights, right, alpha);
      for (int64_t image = 0; image < batch; ++image)
        solve.run(from, image, iterations, tolerance,
                  static_cast<Number*>(wide.mutable_data_ptr()) + image * tokens * labels);
    }
    out = finish_labels<Number>(wide, right.scalar_type(), false);
  });
  return out;
}

}  // namespace nerve_kernels::cpu
