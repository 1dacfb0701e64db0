// Sizes, strides and the division of a walk into tasks.

#include "walk_problem.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kTokensPerBand = 64;
// With fewer rows of cells than this, tasks that each cover whole rows of cells would leave threads idle.
constexpr int64_t kEnoughCellRows = 8;

}  // namespace

MatrixBatch::MatrixBatch(const torch::stable::Tensor& tensor)
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

std::vector<Band> make_bands(const WalkProblem& problem, bool& whole_cells) {
  std::vector<Band> bands;
  const auto is_wide_enough = [&](const Band& band) { return (band.end - band.begin) * problem.width >= kTokensPerBand; };
  whole_cells = problem.averages_cells() && problem.cells_high * problem.batch >= kEnoughCellRows;
  if (whole_cells) {
    for (int64_t cell = 0; cell < problem.cells_high; ++cell) {
      const int64_t begin = WalkProblem::cell_begin(cell, problem.cells_high, problem.height);
      const int64_t end = WalkProblem::cell_begin(cell + 1, problem.cells_high, problem.height);
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
