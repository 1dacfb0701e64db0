// S_local @ P on tensors: checks, dtypes, padding and threads around the row kernel.

#include "window_product.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "../dtypes.h"
#include "../kernels/window_rows.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// Enough multiplications for a thread to be worth waking.
constexpr int64_t kOperationsPerTask = 1 << 16;

struct Problem {
  int64_t batch, height, width, window_height, window_width, num_labels;
  bool values_shared, p_shared;  // one set of values, or of labels, serves the whole batch

  int64_t num_tokens() const { return height * width; }
  int64_t window_size() const { return window_height * window_width; }
};

Problem check(const Tensor& values, const Tensor& p, const std::vector<int64_t>& grid,
              const std::vector<int64_t>& window) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] > 0 && grid[1] > 0, "grid must be two positive sizes (H, W)");
  STD_TORCH_CHECK(window.size() == 2 && window[0] > 0 && window[1] > 0 && window[0] % 2 == 1 && window[1] % 2 == 1,
                  "window must be two positive odd sizes (kh, kw)");
  STD_TORCH_CHECK(values.dim() == 3, "values must be (B, N, kh*kw), got ", values.dim(), " dimensions");
  STD_TORCH_CHECK(p.dim() == 3, "p must be (B, N, C), got ", p.dim(), " dimensions");
  const int64_t num_tokens = grid[0] * grid[1], window_size = window[0] * window[1];
  STD_TORCH_CHECK(values.size(1) == num_tokens, "values must have a row for each of the ", num_tokens,
                  " tokens of grid, got ", values.size(1));
  STD_TORCH_CHECK(values.size(2) == window_size, "values must have a column for each of the ", window_size,
                  " places of window, got ", values.size(2));
  STD_TORCH_CHECK(p.size(1) == num_tokens, "p must have a row for each of the ", num_tokens, " tokens of grid, got ",
                  p.size(1));
  const int64_t values_batch = values.size(0), p_batch = p.size(0);
  STD_TORCH_CHECK(values_batch == p_batch || values_batch == 1 || p_batch == 1,
                  "values and p must agree in their batch, or one of the two be 1, got ", values_batch, " and ",
                  p_batch);
  return {values_batch == 1 ? p_batch : values_batch, grid[0], grid[1], window[0], window[1], p.size(2),
          values_batch == 1, p_batch == 1};
}

int64_t tasks_of(int64_t operations_each) { return std::max<int64_t>(1, kOperationsPerTask / operations_each); }

// P with its rows converted to `Number` and padded with zeros to `stride`.
template <typename Number, typename Label>
void pack_labels(const Label* p, Number* packed, int64_t rows, int64_t num_labels, int64_t stride) {
  torch::stable::parallel_for(0, rows, tasks_of(stride), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      convert(p + row * num_labels, packed + row * stride, num_labels);
      std::fill(packed + row * stride + num_labels, packed + (row + 1) * stride, Number(0));
    }
  });
}

// Each task is one row of the grid of one image. `labels` has `stride` numbers per token.
template <typename Number, typename Value, typename Label>
void multiply_rows(WindowRowFunction<Number> kernel, const Problem& problem, const Value* values, const Number* labels,
                   Label* out, int64_t stride) {
  constexpr bool kConvertValues = !std::is_same_v<Number, Value>;
  const bool in_place = std::is_same_v<Number, Label> && stride == problem.num_labels;
  const int64_t values_per_row = problem.width * problem.window_size();
  const int64_t tasks = problem.batch * problem.height;

  torch::stable::parallel_for(0, tasks, tasks_of(values_per_row * stride), [&](int64_t begin, int64_t end) {
    std::vector<Number> converted_values(kConvertValues ? values_per_row : 0);
    std::vector<Number> padded_out(in_place ? 0 : problem.width * stride);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / problem.height, y = task % problem.height;
      const Value* row_values = values + (problem.values_shared ? y : task) * values_per_row;
      Label* row_out = out + task * problem.width * problem.num_labels;

      WindowRow<Number> row = {};
      row.labels = labels + (problem.p_shared ? 0 : image) * problem.num_tokens() * stride;
      row.stride = stride;
      row.y = y;
      row.height = problem.height;
      row.width = row.x_end = problem.width;
      row.window_height = problem.window_height;
      row.window_width = problem.window_width;
      if constexpr (kConvertValues) {
        convert(row_values, converted_values.data(), values_per_row);
        row.values = converted_values.data();
      } else {
        row.values = row_values;
      }
      row.scale = 1;
      row.out = in_place ? reinterpret_cast<Number*>(row_out) : padded_out.data();
      std::fill(row.out, row.out + problem.width * stride, Number(0));
      kernel(row);
      if (!in_place)
        for (int64_t x = 0; x < problem.width; ++x)
          convert(padded_out.data() + x * stride, row_out + x * problem.num_labels, problem.num_labels);
    }
  });
}

}  // namespace

Tensor window_product(Tensor values, Tensor p, std::vector<int64_t> grid, std::vector<int64_t> window) {
  const Problem problem = check(values, p, grid, window);
  values = torch::stable::contiguous(values);
  p = torch::stable::contiguous(p);
  Tensor out = torch::stable::new_empty(p, {problem.batch, problem.num_tokens(), problem.num_labels});
  if (out.numel() == 0) return out;

  const WindowRowKernels& kernels = best_window_row_kernels();
  const auto run = [&](auto number, ScalarType number_dtype, auto kernel) {
    using Number = decltype(number);
    const int64_t quantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
    const int64_t stride = (problem.num_labels + quantum - 1) / quantum * quantum;
    with_dtype(p.scalar_type(), "p", [&](auto label) {
      using Label = decltype(label);
      const auto* p_data = static_cast<const Label*>(p.const_data_ptr());
      Tensor packed = p;
      if (!std::is_same_v<Label, Number> || stride != problem.num_labels) {
        const int64_t rows = p.size(0) * problem.num_tokens();
        packed = torch::stable::new_empty(p, {rows, stride}, number_dtype);
        pack_labels(p_data, static_cast<Number*>(packed.mutable_data_ptr()), rows, problem.num_labels, stride);
      }
      with_dtype(values.scalar_type(), "values", [&](auto value) {
        using Value = decltype(value);
        multiply_rows<Number, Value, Label>(
            kernel, problem, static_cast<const Value*>(values.const_data_ptr()),
            static_cast<const Number*>(packed.const_data_ptr()), static_cast<Label*>(out.mutable_data_ptr()), stride);
      });
    });
  };
  if (values.scalar_type() == ScalarType::Double || p.scalar_type() == ScalarType::Double)
    run(double{}, ScalarType::Double, kernels.float64);
  else
    run(float{}, ScalarType::Float, kernels.float32);
  return out;
}

}  // namespace nerve_kernels::cpu
