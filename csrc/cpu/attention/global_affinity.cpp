// The fused map summed into cells of keys while it is still in the cache.

#include "attention.h"
#include "cells.h"
#include "fused_strips.h"

namespace nerve_kernels::cpu {
namespace {

// Grid rows of one row of cells are added up as whole rows, and only their sum is cut into cells.
template <typename Number>
class CellSums {
 public:
  CellSums(const std::vector<int64_t>& row_edges, const std::vector<int64_t>& column_edges, int64_t rows, Number* u)
      : row_edges_(row_edges),
        column_edges_(column_edges),
        width_(column_edges.back()),
        columns_(static_cast<int64_t>(column_edges.size()) - 1),
        cells_((static_cast<int64_t>(row_edges.size()) - 1) * columns_),
        u_(u),
        next_cell_row_(rows, 0),
        column_sums_(rows * width_) {}

  void take(int64_t row, int64_t first_key, int64_t keys, const Number* sums) {
    Number* totals = column_sums_.data() + row * width_;
    const int64_t end = first_key + keys;
    for (int64_t key = first_key; key < end;) {
      const int64_t y = key / width_, x = key % width_;
      const int64_t count = std::min(width_ - x, end - key);
      for (int64_t i = 0; i < count; ++i) totals[x + i] += sums[i];
      sums += count;
      key += count;
      if (x + count == width_ && y + 1 == row_edges_[next_cell_row_[row] + 1]) finish_cell_row(row, totals);
    }
  }

 private:
  void finish_cell_row(int64_t row, Number* totals) {
    Number* out = u_ + row * cells_ + next_cell_row_[row]++ * columns_;
    for (int64_t cell = 0; cell < columns_; ++cell) {
      Number sum = 0;
      for (int64_t x = column_edges_[cell]; x < column_edges_[cell + 1]; ++x) sum += totals[x];
      out[cell] = sum;
    }
    std::fill(totals, totals + width_, Number(0));
  }

  const std::vector<int64_t>&row_edges_, &column_edges_;
  int64_t width_, columns_, cells_;
  Number* u_;
  std::vector<int64_t> next_cell_row_;
  std::vector<Number> column_sums_;
};

}  // namespace

Tensor global_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, std::vector<int64_t> grid, std::vector<int64_t> cells,
                       double scale) {
  check_queries_and_keys(q, k);
  check_weights(w, q);
  check_lse(lse, q);
  check_grid(grid, k.size(2), "k");
  check_cells(cells, grid[0], grid[1]);
  const int64_t queries = q.size(2), num_cells = cells[0] * cells[1];
  Tensor u = allocate(lse, {q.size(0), queries, num_cells});
  if (u.numel() == 0) return u;
  const std::vector<int64_t> row_edges = cell_edges(grid[0], cells[0]), column_edges = cell_edges(grid[1], cells[1]);
  with_number(lse.scalar_type() == ScalarType::Double, [&](auto number) {
    using Number = decltype(number);
    auto* data = static_cast<Number*>(u.mutable_data_ptr());
    for_fused_strips<Number>(FusedAttention<Number>(q, k, w, lse, scale), [&](int64_t b, int64_t first, int64_t rows) {
      return CellSums<Number>(row_edges, column_edges, rows, data + (b * queries + first) * num_cells);
    });
  });
  return u;
}

}  // namespace nerve_kernels::cpu
