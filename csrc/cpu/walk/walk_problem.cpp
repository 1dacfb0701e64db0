// Sizes, strides and the division of a walk into tasks.

#include "walk_problem.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "../checks.h"

namespace nerve_kernels::cpu {

using torch::stable::Tensor;

namespace {

constexpr int64_t kMinBandTokens = 64;
// With fewer rows of cells than this, tasks that each cover whole rows of cells would leave threads idle.
constexpr int64_t kMinCellRows = 8;

}  // namespace

MatrixBatch::MatrixBatch(const Tensor& tensor)
    : data(static_cast<const char*>(tensor.const_data_ptr())),
      dtype(tensor.scalar_type()),
      element_size(tensor.element_size()),
      rows(tensor.size(1)),
      columns(tensor.size(2)),
      image_stride(tensor.size(0) == 1 ? 0 : tensor.stride(0)),
      row_stride(tensor.stride(1)),
      column_stride(tensor.stride(2)) {}

MatrixBatch MatrixBatch::transposed() const {
  MatrixBatch other = *this;
  std::swap(other.rows, other.columns);
  std::swap(other.row_stride, other.column_stride);
  return other;
}

void check_part(const Tensor& part, const char* name, int64_t batch, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(part.dim() == 3, name, ": expected 3 dimensions, got ", part.dim());
  STD_TORCH_CHECK(part.size(0) == batch || part.size(0) == 1, name, ": expected a batch of ", batch, " or 1, got ",
                  part.size(0));
  STD_TORCH_CHECK(part.size(1) == rows && part.size(2) == columns, name, ": expected (B, ", rows, ", ", columns,
                  "), got (B, ", part.size(1), ", ", part.size(2), ")");
  with_dtype(part.scalar_type(), name, [](auto) {});
}

void set_local(WalkProblem& problem, Tensor& values, const std::vector<int64_t>& window, bool as_double) {
  check_window(window);
  const int64_t size = window[0] * window[1];
  check_part(values, "values", problem.batch, problem.num_tokens(), size);
  if (values.scalar_type() != number_dtype(as_double) && size > kMaxWidenedWindow)
    values = torch::stable::to(values, number_dtype(as_double));
  values = torch::stable::contiguous(values);
  problem.window_height = window[0];
  problem.window_width = window[1];
  problem.local_values = MatrixBatch(values);
}

GraphBatch make_graph(Tensor& row_pointers, Tensor& columns, int64_t batch, int64_t num_tokens) {
  STD_TORCH_CHECK(row_pointers.scalar_type() == ScalarType::Long && row_pointers.dim() == 2 &&
                      row_pointers.size(1) == num_tokens + 1,
                  "row_pointers: expected int64 (B, ", num_tokens + 1, ")");
  STD_TORCH_CHECK(columns.scalar_type() == ScalarType::Int && columns.dim() == 2, "columns: expected int32 (B, E)");
  STD_TORCH_CHECK((row_pointers.size(0) == 1 || row_pointers.size(0) == batch) &&
                      (columns.size(0) == 1 || columns.size(0) == batch),
                  "row_pointers, columns: expected a batch of ", batch, " or 1");
  row_pointers = torch::stable::contiguous(row_pointers);
  columns = torch::stable::contiguous(columns);
  GraphBatch graph = {.row_pointers = static_cast<const int64_t*>(row_pointers.const_data_ptr()),
                      .columns = static_cast<const int32_t*>(columns.const_data_ptr()),
                      .pointers_image_stride = row_pointers.size(0) == 1 ? 0 : num_tokens + 1,
                      .columns_image_stride = columns.size(0) == 1 ? 0 : columns.size(1)};
  const int64_t images = std::max(row_pointers.size(0), columns.size(0));
  for (int64_t image = 0; image < images; ++image) {
    const int64_t* pointers = graph.pointers_of(image);
    bool in_order = pointers[0] == 0 && pointers[num_tokens] <= columns.size(1);
    for (int64_t row = 0; row < num_tokens; ++row) in_order &= pointers[row] <= pointers[row + 1];
    STD_TORCH_CHECK(in_order, "row_pointers: expected none below the one before, from 0 to at most ", columns.size(1));
    const int32_t* column = graph.columns_of(image);
    const auto last = static_cast<uint32_t>(num_tokens - 1);
    std::atomic<uint32_t> outside = 0;
    torch::stable::parallel_for(0, pointers[num_tokens], 1 << 16, [&](int64_t begin, int64_t end) {
      // the sign of either is set where a column is negative or beyond the last
      uint32_t signs = 0;
      for (int64_t e = begin; e < end; ++e) signs |= static_cast<uint32_t>(column[e]) | (last - static_cast<uint32_t>(column[e]));
      outside |= signs;
    });
    STD_TORCH_CHECK(outside >> 31 == 0, "columns: expected tokens from 0 to ", num_tokens - 1);
  }
  return graph;
}

void set_graph(WalkProblem& problem, Tensor& row_pointers, Tensor& columns, Tensor& values, bool as_double) {
  problem.graph = make_graph(row_pointers, columns, problem.batch, problem.num_tokens());
  STD_TORCH_CHECK(values.dim() == 2 && values.size(1) == columns.size(1) &&
                      (values.size(0) == 1 || values.size(0) == problem.batch),
                  "values: expected (B, ", columns.size(1), ") as columns has");
  with_dtype(values.scalar_type(), "values", [](auto) {});
  if (values.scalar_type() != number_dtype(as_double)) values = torch::stable::to(values, number_dtype(as_double));
  values = torch::stable::contiguous(values);
  problem.graph.values = values.const_data_ptr();
  problem.graph.values_image_stride = values.size(0) == 1 ? 0 : values.size(1);
}

std::vector<Band> make_bands(const WalkProblem& problem, bool& whole_cells) {
  std::vector<Band> bands;
  const auto is_wide_enough = [&](const Band& band) {
    return (band.end - band.begin) * problem.width >= kMinBandTokens;
  };
  whole_cells = problem.averages_cells() && problem.cell_rows * problem.batch >= kMinCellRows;
  if (whole_cells) {
    for (int64_t cell = 0; cell < problem.cell_rows; ++cell) {
      const int64_t begin = WalkProblem::cell_begin(cell, problem.cell_rows, problem.height);
      const int64_t end = WalkProblem::cell_begin(cell + 1, problem.cell_rows, problem.height);
      if (bands.empty() || is_wide_enough(bands.back())) bands.push_back({begin, end, cell, cell + 1});
      bands.back().end = end;
      bands.back().cell_end = cell + 1;
    }
  } else {
    for (int64_t row = 0; row < problem.height; ++row) {
      if (bands.empty() || is_wide_enough(bands.back())) bands.push_back({row, row + 1, 0, 0});
      bands.back().end = row + 1;
    }
  }
  return bands;
}

}  // namespace nerve_kernels::cpu
