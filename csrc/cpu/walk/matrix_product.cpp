// Blocks of a matrix product and rows of a window product, widened where they are stored in a lower precision.

#include "matrix_product.h"

#include <algorithm>

#include "../dtypes.h"
#include "../kernels/kernels.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kDepthAtOnce = 256;  // of a block product; less where there are many labels
constexpr int64_t kBlockBytes = 24 << 10;
constexpr int64_t kMaxTileBytes = 192;  // of labels in a register tile
constexpr int64_t kDepthPadding = 16;  // so that rows of a converted block do not all fall into one set of the cache

template <typename Number>
int64_t depth_at_once(int64_t stride) {
  const int64_t widest = std::min<int64_t>(stride * sizeof(Number), kMaxTileBytes);
  return std::min(kDepthAtOnce, kBlockBytes / widest);
}

}  // namespace

template <typename Number>
void convert_block(const MatrixBatch& matrix, int64_t image, int64_t row, int64_t rows, int64_t column, int64_t columns,
                   Number* out, int64_t out_stride) {
  with_dtype(matrix.dtype, "the affinity", [&](auto stored) {
    using Stored = decltype(stored);
    for (int64_t r = 0; r < rows; ++r) {
      const auto* from = reinterpret_cast<const Stored*>(matrix.at(image, row + r, column));
      if (matrix.column_stride == 1)
        convert(from, out + r * out_stride, columns);
      else
        for (int64_t c = 0; c < columns; ++c)
          out[r * out_stride + c] = static_cast<Number>(from[c * matrix.column_stride]);
    }
  });
}

template <typename Number>
void add_window_row(const WalkProblem& problem, int64_t image, int64_t y, const Number* p, int64_t stride, Number scale,
                    Number* out) {
  const auto multiply_row = best_kernels_of<Number>().window_product;
  const MatrixBatch& values = problem.local_values;
  const int64_t size = problem.window_height * problem.window_width;
  WindowRow<Number> row = {.p = p,
                           .out = out,
                           .scale = scale * static_cast<Number>(problem.local_share),
                           .stride = stride,
                           .y = y,
                           .height = problem.height,
                           .width = problem.width,
                           .window_height = problem.window_height,
                           .window_width = problem.window_width};
  if (values.dtype == dtype_of<Number>) {
    row.values = reinterpret_cast<const Number*>(values.at(image, y * problem.width, 0));
    row.x_end = problem.width;
    multiply_row(row);
    return;
  }
  alignas(64) Number converted[kMaxWidenedWindow];
  const int64_t tokens = kMaxWidenedWindow / size;
  for (int64_t x = 0; x < problem.width; x += tokens) {
    row.x_begin = x;
    row.x_end = std::min(x + tokens, problem.width);
    convert_block(values, image, y * problem.width + x, 1, 0, (row.x_end - x) * size, converted, 0);
    row.values = converted - x * size;
    multiply_row(row);
  }
}

template <typename Number>
void add_product(const MatrixBatch& matrix, int64_t image, int64_t first_row, int64_t num_rows, int64_t first_k,
                 int64_t depth, const Number* b, int64_t stride, Number scale, Number* out) {
  const auto multiply = best_kernels_of<Number>().block_product;
  const bool in_place =
      matrix.dtype == dtype_of<Number> && (matrix.column_stride == 1 || matrix.row_stride == 1);
  const int64_t step = depth_at_once<Number>(stride);
  alignas(64) Number converted[kRowsAtOnce * (kDepthAtOnce + kDepthPadding)];
  for (int64_t row = 0; row < num_rows; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, num_rows - row);
    for (int64_t k = 0; k < depth; k += step) {
      BlockProduct<Number> product = {};
      product.depth = std::min(step, depth - k);
      if (in_place) {
        product.a = reinterpret_cast<const Number*>(matrix.at(image, first_row + row, first_k + k));
        product.a_row_stride = matrix.row_stride;
        product.a_depth_stride = matrix.column_stride;
        const bool last = k + step >= depth;
        if (matrix.column_stride == 1 && (!last || row + rows < num_rows)) {
          product.next = matrix.at(image, first_row + row + (last ? rows : 0), first_k + (last ? 0 : k + step));
          product.next_row_stride = matrix.row_stride * matrix.element_size;
          product.next_row_bytes = product.depth * matrix.element_size;
        }
      } else {
        product.a = converted;
        product.a_row_stride = kDepthAtOnce + kDepthPadding;
        product.a_depth_stride = 1;
        convert_block(matrix, image, first_row + row, rows, first_k + k, product.depth, converted,
                      product.a_row_stride);
      }
      product.b = b + k * stride;
      product.out = out + row * stride;
      product.stride = product.labels = stride;
      product.rows = rows;
      product.scale = scale;
      multiply(product);
    }
  }
}

template void convert_block(const MatrixBatch&, int64_t, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
template void convert_block(const MatrixBatch&, int64_t, int64_t, int64_t, int64_t, int64_t, double*, int64_t);
template void add_window_row(const WalkProblem&, int64_t, int64_t, const float*, int64_t, float, float*);
template void add_window_row(const WalkProblem&, int64_t, int64_t, const double*, int64_t, double, double*);
template void add_product(const MatrixBatch&, int64_t, int64_t, int64_t, int64_t, int64_t, const float*, int64_t, float,
                          float*);
template void add_product(const MatrixBatch&, int64_t, int64_t, int64_t, int64_t, int64_t, const double*, int64_t,
                          double, double*);

}  // namespace nerve_kernels::cpu
