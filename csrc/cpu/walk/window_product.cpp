// S_local @ P and its gradient for the window values, on tensors.

#include "window_product.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../allocation.h"
#include "../checks.h"
#include "../kernels/kernels.h"
#include "../work_stealing.h"
#include "labels.h"
#include "matrix_product.h"
#include "walk_problem.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// Multiplications that are worth waking a thread.
constexpr int64_t kMinTaskOperations = 1 << 16;

}  // namespace

Tensor window_product(Tensor values, Tensor p, std::vector<int64_t> grid, std::vector<int64_t> window) {
  STD_TORCH_CHECK(values.dim() == 3 && p.dim() == 3, "values, p: expected 3 dimensions, got ", values.dim(), " and ",
                  p.dim());
  check_grid(grid, p.size(1), "p");
  const int64_t batch = values.size(0) == 1 ? p.size(0) : values.size(0);
  WalkProblem problem = {.batch = batch, .height = grid[0], .width = grid[1], .num_labels = p.size(2)};
  check_part(p, "p", batch, problem.num_tokens(), problem.num_labels);
  const bool as_double = is_double(values) || is_double(p);
  set_local(problem, values, window, as_double);
  problem.local_share = 1;
  Tensor out = allocate(p, {batch, problem.num_tokens(), problem.num_labels});
  if (out.numel() == 0) return out;
  with_number(as_double, [&](auto number) {
    using Number = decltype(number);
    const int64_t width = problem.width, num_tokens = problem.num_tokens();
    const int64_t stride = padded_labels<Number>(problem.num_labels);
    const bool in_place = p.scalar_type() == dtype_of<Number> && stride == problem.num_labels;
    const Tensor packed = in_place ? torch::stable::contiguous(p) : pack_labels<Number>(p, stride);
    const auto* p_data = static_cast<const Number*>(packed.const_data_ptr());
    const int64_t p_image_stride = p.size(0) == 1 ? 0 : num_tokens * stride;
    const int64_t grain = std::max<int64_t>(1, kMinTaskOperations / (width * values.size(2) * stride));
    torch::stable::parallel_for(0, batch * problem.height, grain, [&](int64_t begin, int64_t end) {
      std::vector<Number> buffer(in_place ? 0 : width * stride);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / problem.height, y = task % problem.height;
        Number* row = in_place ? static_cast<Number*>(out.mutable_data_ptr()) + task * width * stride : buffer.data();
        std::fill(row, row + width * stride, Number(0));
        add_window_row(problem, image, y, p_data + image * p_image_stride, stride, Number(1), row);
        if (!in_place) store_labels(row, stride, image, y * width, width, false, out);
      }
    });
  });
  return out;
}

Tensor window_gradient(Tensor left, Tensor p, std::vector<int64_t> grid, std::vector<int64_t> window) {
  STD_TORCH_CHECK(p.dim() == 3, "p: expected (B, N, C), got ", p.dim(), " dimensions");
  check_grid(grid, p.size(1), "p");
  check_window(window);
  const int64_t batch = p.size(0), num_tokens = p.size(1), size = window[0] * window[1], height = grid[0];
  check_part(left, "left", batch, num_tokens, p.size(2));
  STD_TORCH_CHECK(left.size(0) == batch, "left: expected the batch of p, ", batch, ", got ", left.size(0));
  const bool as_double = is_double(left) || is_double(p);
  Tensor gradient = allocate_zeros(p, {batch, num_tokens, size}, number_dtype(as_double));
  if (gradient.numel() == 0 || p.size(2) == 0) return gradient;
  with_number(as_double, [&](auto number) {
    using Number = decltype(number);
    const int64_t stride = padded_labels<Number>(p.size(2));
    const Tensor packed_left = pack_labels<Number>(left, stride), packed_p = pack_labels<Number>(p, stride);
    const auto* left_data = static_cast<const Number*>(packed_left.const_data_ptr());
    const auto* p_data = static_cast<const Number*>(packed_p.const_data_ptr());
    auto* out = static_cast<Number*>(gradient.mutable_data_ptr());
    const auto gradient_row = best_kernels_of<Number>().window_gradient;
    for_each_task(batch * height, [&](auto next) {
      for (int64_t task; next(task);) {
        const int64_t image = task / height, y = task % height, token = image * num_tokens + y * grid[1];
        gradient_row({.left = left_data + token * stride,
                      .p = p_data + image * num_tokens * stride,
                      .gradient = out + token * size,
                      .stride = stride,
                      .y = y,
                      .height = height,
                      .width = grid[1],
                      .window_height = window[0],
                      .window_width = window[1]});
      }
    });
  });
  return gradient;
}

}  // namespace nerve_kernels::cpu
