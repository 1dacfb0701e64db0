// The gradients of queries and keys from those of what is made of their attention: one pass over the scores.
//
// A head's rows are cut into chunks, whose number depends on sizes only. Each chunk adds to a copy of the keys' gradient
// that is its own; the copies are added up in order.

#include <algorithm>
#include <optional>

#include "attention.h"
#include "attention_inputs.h"
#include "cells.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

using OptionalTensor = std::optional<Tensor>;

// Tasks for as many threads: a head is cut so that there are this many, and no more, as each costs a copy.
constexpr int64_t kMaxChunks = 32;

// A number a row: (B, heads, N) in the type that is computed in, or zeros where there is no tensor.
template <typename Number>
class RowNumbers {
 public:
  RowNumbers(const OptionalTensor& tensor, const char* name, const Tensor& lse) : zeros_(lse.size(2), Number(0)) {
    if (!tensor.has_value()) return;
    STD_TORCH_CHECK(tensor->dim() == 3 && tensor->size(0) == lse.size(0) && tensor->size(1) == lse.size(1) &&
                        tensor->size(2) == lse.size(2) && tensor->scalar_type() == lse.scalar_type(),
                    name, ": expected the shape and dtype of lse");
    storage_ = torch::stable::contiguous(*tensor);
    data_ = static_cast<const Number*>(storage_->const_data_ptr());
  }

  const Number* of_head(int64_t index) const {
    return data_ == nullptr ? zeros_.data() : data_ + index * static_cast<int64_t>(zeros_.size());
  }

 private:
  OptionalTensor storage_;
  const Number* data_ = nullptr;
  std::vector<Number> zeros_;
};

// Rows of several numbers as they are computed with, those of a block at a time; null where there is no tensor.
template <typename Number>
class RowsIn {
 public:
  RowsIn(const OptionalTensor& tensor, int64_t rows_each, int64_t stride, Number factor = 1)
      : factor_(factor), stride_(stride) {
    if (!tensor.has_value()) return;
    tokens_.emplace(*tensor);
    buffer_.resize(rows_each * stride);
  }

  const Number* rows(int64_t b, int64_t head, int64_t first, int64_t count) {
    if (!tokens_.has_value()) return nullptr;
    pack_rows(*tokens_, b, head, first, count, factor_, stride_, buffer_.data());
    return buffer_.data();
  }

 private:
  Number factor_;
  int64_t stride_;
  std::optional<Tokens> tokens_;
  std::vector<Number> buffer_;
};

void check_rows(const OptionalTensor& rows, const char* name, const Tensor& q, int64_t columns) {
  if (!rows.has_value()) return;
  STD_TORCH_CHECK(rows->dim() == 4 && rows->size(0) == q.size(0) && rows->size(1) == q.size(1) &&
                      rows->size(2) == q.size(2) && rows->size(3) == columns,
                  name, ": expected (B, heads, N, ", columns, ")");
  with_dtype(rows->scalar_type(), name, [](auto) {});
}

// The copies of each head's gradient added up into (B, heads, keys, d).
template <typename Number>
void add_copies(const Number* copies, int64_t chunks, int64_t stride, Tensor& out) {
  constexpr int64_t kKeysPerTask = 64;
  const int64_t keys = out.size(2), channels = out.size(3), tasks = ceil_div(keys, kKeysPerTask);
  auto* data = static_cast<Number*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, out.size(0) * out.size(1) * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / tasks, first = task % tasks * kKeysPerTask;
      for (int64_t key = first; key < std::min(keys, first + kKeysPerTask); ++key) {
        Number* to = data + (index * keys + key) * channels;
        const Number* from = copies + (index * chunks * keys + key) * stride;
        std::copy(from, from + channels, to);
        for (int64_t chunk = 1; chunk < chunks; ++chunk)
          for (int64_t channel = 0; channel < channels; ++channel)
            to[channel] += from[chunk * keys * stride + channel];
      }
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attention_gradient(Tensor q, Tensor k, Tensor lse, OptionalTensor a, OptionalTensor b,
                                                      OptionalTensor cell_lse, OptionalTensor c, OptionalTensor local,
                                                      OptionalTensor pooled, std::vector<int64_t> grid,
                                                      std::vector<int64_t> window, std::vector<int64_t> cells,
                                                      double scale, double sharpness) {
  check_queries_and_keys(q, k);
  check_grid(grid, k.size(2), "k");
  check_window(window);
  check_cells(cells, grid[0], grid[1]);
  if (local.has_value()) check_grid(grid, q.size(2), "q");
  const int64_t window_size = window[0] * window[1], num_cells = cells[0] * cells[1];
  check_lse(lse, q);
  check_rows(local, "local", q, window_size);
  check_rows(pooled, "pooled", q, num_cells);
  STD_TORCH_CHECK(sharpness == 1 || (pooled.has_value() && cell_lse.has_value()),
                  "cell_lse, pooled: expected where the sharpness is not 1");
  const Tokens queries(q), keys(k);
  const int64_t batch = queries.batch, heads = queries.heads, count = queries.count, channels = queries.channels;
  const ScalarType dtype = number_dtype(is_double(lse));
  Tensor grad_q = allocate(q, {batch, heads, count, channels}, dtype);
  Tensor grad_k = allocate_zeros(k, {batch, heads, keys.count, channels}, dtype);
  Tensor row_sums = allocate(q, {batch, heads, count}, dtype);
  if (q.numel() == 0) return {grad_q, grad_k, row_sums};
  const std::vector<int64_t> row_edges = cell_edges(grid[0], cells[0]), column_edges = cell_edges(grid[1], cells[1]);

  with_number(is_double(lse), [&](auto number) {
    using Number = decltype(number);
    const KernelsOf<Number>& kernels = best_kernels_of<Number>();
    const int64_t rows_each = kGroupsAtOnce * kernels.tile.rows, blocks = ceil_div(count, rows_each);
    const int64_t blocks_each = ceil_div(blocks, std::clamp<int64_t>(kMaxChunks / (batch * heads), 1, blocks));
    const int64_t chunks = ceil_div(blocks, blocks_each), stride = padded_labels<Number>(channels);
    const RowNumbers<Number> row_lse(lse, "lse", lse), row_a(a, "a", lse), row_b(b, "b", lse), row_c(c, "c", lse),
        row_cell_lse(cell_lse, "cell_lse", lse);
    const PackedKeys<Number> panels(k, kernels.tile);
    const Tensor key_rows = pack_all_rows<Number>(k, stride);
    Tensor copies = allocate(k, {batch * heads * chunks, keys.count, stride}, dtype);
    const auto* key_data = static_cast<const Number*>(key_rows.const_data_ptr());
    auto* copy_data = static_cast<Number*>(copies.mutable_data_ptr());
    auto* grad_q_data = static_cast<Number*>(grad_q.mutable_data_ptr());
    auto* sum_data = static_cast<Number*>(row_sums.mutable_data_ptr());

    for_each_task(batch * heads * chunks, [&](auto next) {
      RowsIn<Number> rows(q, rows_each, stride, static_cast<Number>(scale));
      RowsIn<Number> local_rows(local, rows_each, window_size), pooled_rows(pooled, rows_each, num_cells);
      std::vector<Number> groups(rows_each * channels), gradient(rows_each * stride), columns(rows_each * grid[1]);
      AttentionGradientTask<Number> block = {};
      block.q = groups.data();
      block.keys = keys.count;
      block.head_size = channels;
      block.stride = stride;
      block.width = grid[1];
      block.window_height = window[0];
      block.window_width = window[1];
      block.cell_rows = cells[0];
      block.cell_columns = cells[1];
      block.cell_row_edges = row_edges.data();
      block.cell_column_edges = column_edges.data();
      block.scale = static_cast<Number>(scale);
      block.sharpness = static_cast<Number>(sharpness);
      block.columns = columns.data();
      block.grad_q = gradient.data();
      for (int64_t task; next(task);) {
        const int64_t index = task / chunks, image = index / heads, head = index % heads;
        block.k = panels.panel(image, head, 0);
        block.k_rows = key_data + index * keys.count * stride;
        block.grad_k = copy_data + task * keys.count * stride;
        std::fill(block.grad_k, block.grad_k + keys.count * stride, Number(0));
        const int64_t first_block = task % chunks * blocks_each;
        for (int64_t i = first_block; i < std::min(blocks, first_block + blocks_each); ++i) {
          const int64_t first = i * rows_each, size = std::min(rows_each, count - first);
          block.rows = size;
          block.first_row = first;
          pack_groups(queries, image, head, first, size, block.scale, kernels.tile, groups.data());
          block.q_rows = rows.rows(image, head, first, size);
          block.lse = row_lse.of_head(index) + first;
          block.a = row_a.of_head(index) + first;
          block.b = row_b.of_head(index) + first;
          block.cell_lse = row_cell_lse.of_head(index) + first;
          block.c = row_c.of_head(index) + first;
          block.local = local_rows.rows(image, head, first, size);
          block.pooled = pooled_rows.rows(image, head, first, size);
          block.row_sums = sum_data + index * count + first;
          std::fill(gradient.begin(), gradient.end(), Number(0));
          kernels.attention_gradient(block);
          for (int64_t row = 0; row < size; ++row)
            std::copy_n(gradient.data() + row * stride, channels, grad_q_data + (index * count + first + row) * channels);
        }
      }
    });
    add_copies(copy_data, chunks, stride, grad_k);
  });
  return {grad_q, grad_k, row_sums};
}

}  // namespace nerve_kernels::cpu
