// Entropy, lse, window and cells of every head's attention rows: one streaming pass over the keys.

#include <algorithm>

#include "attention.h"
#include "attention_inputs.h"
#include "cells.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

// Numbers as the kernel makes them, one task's at a time: the output itself, or room from which they are rounded.
template <typename Number>
class RowsOut {
 public:
  RowsOut(Tensor tensor, int64_t rows_each, int64_t columns)
      : dtype_(tensor.scalar_type()), data_(static_cast<char*>(tensor.mutable_data_ptr())), columns_(columns) {
    if (dtype_ != dtype_of<Number>) buffer_.resize(rows_each * columns);
  }

  Number* rows(int64_t first) {
    return buffer_.empty() ? reinterpret_cast<Number*>(data_) + first * columns_ : buffer_.data();
  }

  void written(int64_t first, int64_t rows) {
    if (!buffer_.empty())
      convert(buffer_.data(), reinterpret_cast<BFloat16*>(data_) + first * columns_, rows * columns_);
  }

 private:
  ScalarType dtype_;
  char* data_;
  int64_t columns_;
  std::vector<Number> buffer_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_statistics(Tensor q, Tensor k, std::vector<int64_t> grid,
                                                                        std::vector<int64_t> window,
                                                                        std::vector<int64_t> cells, double scale,
                                                                        double sharpness, bool bfloat16) {
  check_queries_and_keys(q, k);
  check_grid(grid, q.size(2), "q");
  check_grid(grid, k.size(2), "k");
  check_window(window);
  check_cells(cells, grid[0], grid[1]);
  const Tokens queries(q);
  const bool wide = is_double(q) || is_double(k);
  const ScalarType dtype = number_dtype(wide), storage = bfloat16 ? ScalarType::BFloat16 : dtype;
  const int64_t batch = queries.batch, heads = queries.heads, count = queries.count;
  const int64_t window_size = window[0] * window[1], num_cells = cells[0] * cells[1];
  Tensor entropy = allocate(q, {batch, heads, count}, dtype);
  Tensor lse = allocate(q, {batch, heads, count}, dtype);
  Tensor local = allocate(q, {batch, heads, count, window_size}, storage);
  Tensor pooled = allocate(q, {batch, heads, count, num_cells}, storage);
  Tensor cell_lse = allocate(q, {batch, heads, count}, dtype);
  const std::tuple results{entropy, lse, local, pooled, cell_lse};
  if (entropy.numel() == 0) return results;
  const std::vector<int64_t> row_edges = cell_edges(grid[0], cells[0]), column_edges = cell_edges(grid[1], cells[1]);

  with_number(wide, [&](auto number) {
    using Number = decltype(number);
    const KernelsOf<Number>& kernels = best_kernels_of<Number>();
    const PackedKeys<Number> keys(k, kernels.tile);
    auto* entropy_data = static_cast<Number*>(entropy.mutable_data_ptr());
    auto* lse_data = static_cast<Number*>(lse.mutable_data_ptr());
    auto* cell_lse_data = static_cast<Number*>(cell_lse.mutable_data_ptr());
    const int64_t groups = groups_per_task(ceil_div(count, kernels.tile.rows), batch * heads, kGroupsAtOnce);
    const int64_t rows_each = groups * kernels.tile.rows, blocks = ceil_div(count, rows_each);

    for_each_task(batch * heads * blocks, [&](auto next) {
      StatisticsTask<Number> block = {};
      block.keys = k.size(2);
      block.head_size = queries.channels;
      block.width = grid[1];
      block.window_height = window[0];
      block.window_width = window[1];
      block.cell_rows = cells[0];
      block.cell_columns = cells[1];
      block.cell_row_edges = row_edges.data();
      block.cell_column_edges = column_edges.data();
      block.sharpness = static_cast<Number>(sharpness);
      block.column_stride = round_up(grid[1], kernels.lanes);
      block.cell_row_stride = round_up(cells[0], kernels.lanes);
      std::vector<Number> packed_queries(rows_each * queries.channels);
      std::vector<Number> columns(rows_each * block.column_stride), maxima(rows_each * block.cell_row_stride);
      std::vector<Number> cell_sums(rows_each * num_cells);
      block.q = packed_queries.data();
      block.columns = columns.data();
      block.cell_sums = cell_sums.data();
      block.cell_maxima = maxima.data();
      RowsOut<Number> local_out(local, rows_each, window_size), pooled_out(pooled, rows_each, num_cells);
      for (int64_t task; next(task);) {
        const int64_t index = task / blocks, first = task % blocks * rows_each, b = index / heads, head = index % heads;
        const int64_t place = index * count + first;
        block.rows = std::min(rows_each, count - first);
        block.first_row = first;
        pack_groups(queries, b, head, first, block.rows, static_cast<Number>(scale), kernels.tile,
                    packed_queries.data());
        block.k = keys.panel(b, head, 0);
        block.entropy = entropy_data + place;
        block.lse = lse_data + place;
        block.cell_lse = cell_lse_data + place;
        block.local = local_out.rows(place);
        block.pooled = pooled_out.rows(place);
        kernels.attention_statistics(block);
        local_out.written(place, block.rows);
        pooled_out.written(place, block.rows);
      }
    });
  });
  return results;
}

}  // namespace nerve_kernels::cpu
