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

// Sparse graphs in compressed rows, a batch of 1 serving every image, with values in the type that is computed in.
struct GraphBatch {
  bool present() const { return row_pointers != nullptr; }
  const int64_t* pointers_of(int64_t image) const { return row_pointers + image * pointers_image_stride; }
  const int32_t* columns_of(int64_t image) const { return columns + image * columns_image_stride; }
  template <typename Number>
  const Number* values_of(int64_t image) const {
    return static_cast<const Number*>(values) + image * values_image_stride;
  }

  const int64_t* row_pointers = nullptr;
  const int32_t* columns = nullptr;
  const void* values = nullptr;
  int64_t pointers_image_stride = 0, columns_image_stride = 0, values_image_stride = 0;
};

// A band: whole grid rows, what a task computes.
struct Band {
  int64_t begin, end;            // grid rows
  int64_t cell_begin, cell_end;  // the cell rows it covers, where it covers whole ones
};

// S is `dense`, or local_share * S_local + global_share * S_global with S_global = U V^T, S_local a window or a graph. A step computes T = V^T P,
// pooled P, with one row for each of the ranks, and then U T.
struct WalkProblem {
  int64_t batch = 0, height = 0, width = 0, num_labels = 0;
  int64_t window_height = 0, window_width = 0;
  int64_t cell_rows = 0, cell_columns = 0;  // 0 where S_global has no cells
  int64_t rank = 0;                         // 0 without S_global
  MatrixBatch dense = {}, local_values = {};
  GraphBatch graph = {};
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

// Checks the indices and values of graphs and makes them S_local; an index that leads nowhere is refused. What has to
// outlive the problem replaces what was given.
void set_graph(WalkProblem& problem, torch::stable::Tensor& row_pointers, torch::stable::Tensor& columns,
               torch::stable::Tensor& values, bool as_double);

// The same without values.
GraphBatch make_graph(torch::stable::Tensor& row_pointers, torch::stable::Tensor& columns, int64_t batch,
                      int64_t num_tokens);

// Bands of at least as many tokens as are worth a task. With enough rows of cells each band covers whole cells, so that
// it can average them by itself; `whole_cells` says whether that is so.
std::vector<Band> make_bands(const WalkProblem& problem, bool& whole_cells);

}  // namespace nerve_kernels::cpu
