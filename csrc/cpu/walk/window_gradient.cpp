// The gradient of S_local @ P for the window values, on tensors.

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../dtypes.h"
#include "../work_stealing.h"
#include "walk_problem.h"
#include "window_product.h"
#include "../kernels/window_rows.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// (B, N, C) as `Number`, each token's labels padded with zeros to `stride`.
template <typename Number>
Tensor pack_labels(const Tensor& tensor, int64_t stride) {
  const MatrixBatch from(tensor);
  Tensor packed = torch::stable::new_empty(tensor, {tensor.size(0), from.rows, stride}, dtype_of<Number>);
  auto* data = static_cast<Number*>(packed.mutable_data_ptr());
  with_dtype(from.dtype, "left and p", [&](auto stored) {
    using Stored = decltype(stored);
    torch::stable::parallel_for(0, tensor.size(0) * from.rows, 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto* labels = reinterpret_cast<const Stored*>(from.at(row / from.rows, row % from.rows, 0));
        Number* to = data + row * stride;
        for (int64_t c = 0; c < from.columns; ++c) to[c] = convert_one<Number>(labels[c * from.column_stride]);
        std::fill(to + from.columns, to + stride, Number(0));
      }
    });
  });
  return packed;
}

}  // namespace

Tensor window_gradient(Tensor left, Tensor p, std::vector<int64_t> grid, std::vector<int64_t> window) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] > 0 && grid[1] > 0, "grid must be two positive sizes (H, W)");
  STD_TORCH_CHECK(window.size() == 2 && window[0] > 0 && window[1] > 0 && window[0] % 2 == 1 && window[1] % 2 == 1,
                  "window must be two positive odd sizes (kh, kw)");
  STD_TORCH_CHECK(left.dim() == 3 && p.dim() == 3 && left.size(0) == p.size(0) && left.size(1) == p.size(1) &&
                      left.size(2) == p.size(2),
                  "left and p must have the same shape (B, N, C)");
  STD_TORCH_CHECK(p.size(1) == grid[0] * grid[1], "p must have a row for each of the ", grid[0] * grid[1],
                  " tokens of grid, got ", p.size(1));
  const int64_t batch = p.size(0), num_tokens = p.size(1), size = window[0] * window[1], height = grid[0];
  const bool as_double = left.scalar_type() == ScalarType::Double || p.scalar_type() == ScalarType::Double;
  Tensor gradient = torch::stable::new_zeros(p, {batch, num_tokens, size},
                                             as_double ? ScalarType::Double : ScalarType::Float);
  if (gradient.numel() == 0 || p.size(2) == 0) return gradient;
  with_number(as_double, [&](auto number) {
    using Number = decltype(number);
    const int64_t quantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
    const int64_t stride = (p.size(2) + quantum - 1) / quantum * quantum;
    const Tensor packed_left = pack_labels<Number>(left, stride), packed = pack_labels<Number>(p, stride);
    const auto* left_data = static_cast<const Number*>(packed_left.const_data_ptr());
    const auto* labels = static_cast<const Number*>(packed.const_data_ptr());
    auto* out = static_cast<Number*>(gradient.mutable_data_ptr());
    const auto gradient_row = best_window_row_kernels().gradient_of<Number>();
    for_each_task(batch * height, [&](auto next) {
      for (int64_t task; next(task);) {
        const int64_t image = task / height, y = task % height;
        const int64_t token = image * num_tokens + y * grid[1];
        WindowGradientRow<Number> row = {};
        row.left = left_data + token * stride;
        row.labels = labels + image * num_tokens * stride;
        row.gradient = out + token * size;
        row.stride = stride;
        row.y = y;
        row.height = height;
        row.width = grid[1];
        row.window_height = window[0];
        row.window_width = window[1];
        gradient_row(row);
      }
    });
  });
  return gradient;
}

}  // namespace nerve_kernels::cpu
