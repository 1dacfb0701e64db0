#pragma once

// A walk's tensors as its driver wants them: checked, with their strides and sizes at hand.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "../dtypes.h"

namespace nerve_kernels::cpu {

// (B or 1, rows, columns) with any strides, a batch of 1 serving every image. It does not own the numbers.
struct MatrixBatch {
  MatrixBatch() = default;
  explicit MatrixBatch(const torch::stable::Tensor& tensor);

  bool present() const { return data != nullptr; }
  const char* at(int64_t image, int64_t row, int64_t column) const {
    return data + (image * image_stride + row * row_stride + column * column_stride) * element_size;
  }
  MatrixBatch transposed() const;

  const char* data = nullptr;
  ScalarType dtype = ScalarType::Float;
  int64_t element_size = 0, rows = 0, columns = 0;
  int64_t image_stride = 0, row_stride = 0, column_stride = 0;
};

// A band: whole grid rows, what a task computes.
struct Band {
  int64_t begin, end;            // grid rows
  int64_t cell_begin, cell_end;  // the cell rows it covers, where it covers whole ones
};

// S is `dense`, or local_share * S_local + global_share * S_global with S_global = U V^T. A step computes T = V^T P,
// pooled P, with one row for each of the ranks, and then U T.
struct WalkProblem {
  int64_t batch = 0, height = 0, width = 0, num_labels = 0;
  int64_t window_height = 0, window_width = 0;
  int64_t cell_rows = 0, cell_columns = 0;  // 0 where S_global has no cells
  int64_t rank = 0;                         // 0 without S_global
  MatrixBatch dense = {}, local_values = {};
  MatrixBatch global_u = {};  // (N, rank); where absent, a token takes its cell's row of T divided by the cell's size
  MatrixBatch global_v = {};  // V^T, (rank, N); where absent, T is the averages of P over cells
  double local_share = 0, global_share = 0;

  int64_t num_tokens() const { return height * width; }
  bool averages_cells() const { return rank > 0 && !global_v.present(); }
  // Cell `index` of `count` along a side begins here and ends where the next one begins.
  static int64_t cell_begin(int64_t index, int64_t count, int64_t side) { return index * side / count; }
};

// A tensor that must be (batch or 1, rows, columns) of a dtype that is computed with.
void check_part(const torch::stable::Tensor& part, const char* name, int64_t batch, int64_t rows, int64_t columns);

// Low-precision window values are widened as they are used, that many at a time; beforehand where a window is larger.
constexpr int64_t kMaxWidenedWindow = 4096;

// Checks the window and its values and makes them S_local. `values` is replaced by what has to outlive the problem.
void set_local(WalkProblem& problem, torch::stable::Tensor& values, const std::vector<int64_t>& window, bool as_double);

// Bands of at least as many tokens as are worth a task. With enough rows of cells each band covers whole cells, so that
// it can average them by itself; `whole_cells` says whether that is so.
std::vector<Band> make_bands(const WalkProblem& problem, bool& whole_cells);

}  // namespace nerve_kernels::cpu
