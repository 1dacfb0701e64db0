#pragma once

// A walk's tensors as its driver wants them: checked, with their strides and sizes at hand.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
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

struct WalkProblem {
  int64_t batch, height, width, num_labels;
  int64_t window_height = 0, window_width = 0;
  int64_t cells_high = 0, cells_wide = 0;  // 0 where S_global has no cells
  // S = left_share * left * right + local_share * (window values). `right` brings the tokens to rank rows: by a matrix
  // (rank, N), or by averaging over cells. `left` brings them back: by a matrix (N, rank), or by spreading.
  // A dense S is a `left` of rank N, with nothing to its right.
  MatrixBatch left, right, values;
  double left_share = 0, local_share = 0;
  int64_t rank = 0;  // 0 where S is local only
  bool is_dense = false;

  int64_t num_tokens() const { return height * width; }
  bool averages_cells() const { return rank > 0 && !is_dense && !right.present(); }
  bool spreads_cells() const { return rank > 0 && !left.present(); }
  // Cell `index` of `count` along a side begins here and ends where the next one begins.
  static int64_t cell_begin(int64_t index, int64_t count, int64_t side) { return index * side / count; }
};

// Bands of at least as many tokens as are worth a task. With enough rows of cells each band covers whole cells, so that
// it can average them by itself; `whole_cells` says whether that is so.
std::vector<Band> make_bands(const WalkProblem& problem, bool& whole_cells);

}  // namespace nerve_kernels::cpu
