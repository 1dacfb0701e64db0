// The passes of one step: restart, U T, window, T for the next step; a task is a band of grid rows.

#include "walk_steps.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "../allocation.h"
#include "../checks.h"
#include "../kernels/kernels.h"
#include "../work_stealing.h"
#include "labels.h"
#include "matrix_product.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// The product V^T P is cut into about so many tasks, by tokens where its rank is too small for that.
constexpr int64_t kPoolTasks = 16, kTokensPerChunk = 256;

}  // namespace

template <typename Number>
Walk<Number>::Walk(const WalkProblem& problem, double alpha, const Tensor& like)
    : problem_(problem), alpha_(static_cast<Number>(alpha)) {
  stride_ = padded_labels<Number>(problem.num_labels);
  bands_ = make_bands(problem, whole_cells_);
  const int64_t labels = problem.batch * problem.num_tokens() * stride_;
  const int64_t pooled = problem.batch * problem.rank * stride_;
  if (problem.global_v.present()) {
    const int64_t tasks = problem.batch * ceil_div(problem.rank, kRowsAtOnce);
    chunks_ = std::clamp<int64_t>(kPoolTasks / tasks, 1, ceil_div(problem.num_tokens(), kTokensPerChunk));
  }
  const int64_t buffers = whole_cells_ ? 2 : chunks_;
  const int64_t alignment = 64 / static_cast<int64_t>(sizeof(Number));
  const auto padded = [&](int64_t count) { return round_up(count, alignment); };
  const bool uses_bf16 = std::is_same_v<Number, float> && Bf16Global::suits(problem);
  const int64_t bf16_numbers = uses_bf16 ? Bf16Global::numbers_needed(problem, stride_) : 0;
  storage_ = allocate(
      like, {2 * padded(labels) + buffers * padded(pooled) + bf16_numbers + alignment}, dtype_of<Number>);
  auto address = reinterpret_cast<uintptr_t>(storage_.mutable_data_ptr());
  auto* data = reinterpret_cast<Number*>((address + 63) / 64 * 64);
  p_[0] = data;
  p_[1] = data + padded(labels);
  pooled_[0] = p_[1] + padded(labels);
  pooled_[1] = whole_cells_ ? pooled_[0] + padded(pooled) : pooled_[0];
  if constexpr (std::is_same_v<Number, float>)
    if (uses_bf16) bf16_global_.emplace(problem, stride_, pooled_[0] + buffers * padded(pooled));
}

template <typename Number>
void Walk<Number>::average_cell(const Number* labels, int64_t row, int64_t column, Number* out) const {
  const auto sum_tokens = best_kernels_of<Number>().sum_tokens;
  const int64_t top = WalkProblem::cell_begin(row, problem_.cell_rows, problem_.height);
  const int64_t bottom = WalkProblem::cell_begin(row + 1, problem_.cell_rows, problem_.height);
  const int64_t left = WalkProblem::cell_begin(column, problem_.cell_columns, problem_.width);
  const int64_t right = WalkProblem::cell_begin(column + 1, problem_.cell_columns, problem_.width);
  std::fill(out, out + stride_, Number(0));
  for (int64_t y = top; y < bottom; ++y)
    sum_tokens({labels + (y * problem_.width + left) * stride_, stride_, right - left, out});
  const Number share = Number(1) / static_cast<Number>((bottom - top) * (right - left));
  for (int64_t c = 0; c < stride_; ++c) out[c] *= share;
}

template <typename Number>
void Walk<Number>::pool(int64_t which) {
  if (problem_.averages_cells()) {
    const int64_t cells = problem_.rank;
    torch::stable::parallel_for(0, problem_.batch * cells, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / cells, cell = task % cells;
        average_cell(p_of(which, image), cell / problem_.cell_columns, cell % problem_.cell_columns,
                     pooled_of(which, image) + cell * stride_);
      }
    });
    return;
  }
  const int64_t strips = ceil_div(problem_.rank, kRowsAtOnce), all = problem_.batch * problem_.rank * stride_;
  const int64_t tokens = ceil_div(problem_.num_tokens(), chunks_);
  for_each_task(problem_.batch * strips * chunks_, [&](auto next) {
    for (int64_t task; next(task);) {
      const int64_t image = task / (strips * chunks_), strip = task / chunks_ % strips, chunk = task % chunks_;
      const int64_t row = strip * kRowsAtOnce, rows = std::min(kRowsAtOnce, problem_.rank - row);
      const int64_t first = std::min(chunk * tokens, problem_.num_tokens());
      Number* out = pooled_[0] + chunk * all + (image * problem_.rank + row) * stride_;
      std::fill(out, out + rows * stride_, Number(0));
      add_product(problem_.global_v, image, row, rows, first, std::min(tokens, problem_.num_tokens() - first),
                  p_of(which, image) + first * stride_, stride_, Number(1), out);
    }
  });
  if (chunks_ == 1) return;
  torch::stable::parallel_for(0, problem_.batch * problem_.rank, 64, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk)
      for (int64_t i = begin * stride_; i < end * stride_; ++i) pooled_[0][i] += pooled_[0][chunk * all + i];
  });
}

template <typename Number>
void Walk<Number>::add_global(int64_t image, int64_t first, int64_t count, int64_t from, Number* out) const {
  const Number scale = alpha_ * static_cast<Number>(problem_.global_share);
  if (problem_.dense.present()) {
    add_product(problem_.dense, image, first, count, 0, problem_.num_tokens(), p_of(from, image), stride_, scale, out);
  } else if (bf16_global_.has_value()) {
    if constexpr (std::is_same_v<Number, float>) bf16_global_->add(image, first, count, scale, out);
  } else if (problem_.global_u.present()) {
    add_product(problem_.global_u, image, first, count, 0, problem_.rank, pooled_of(from, image), stride_, scale, out);
  } else {
    // spread: each token takes its cell's value divided by the cell's size
    for (int64_t token = first; token < first + count; ++token, out += stride_) {
      const int64_t y = token / problem_.width, x = token % problem_.width;
      // the cell of a position p is the last that begins at p or before
      const int64_t row = ((y + 1) * problem_.cell_rows - 1) / problem_.height;
      const int64_t column = ((x + 1) * problem_.cell_columns - 1) / problem_.width;
      const auto size = [](int64_t index, int64_t cells, int64_t side) {
        return WalkProblem::cell_begin(index + 1, cells, side) - WalkProblem::cell_begin(index, cells, side);
      };
      const Number share = scale / static_cast<Number>(size(row, problem_.cell_rows, problem_.height) *
                                                       size(column, problem_.cell_columns, problem_.width));
      const Number* cell = pooled_of(from, image) + (row * problem_.cell_columns + column) * stride_;
      for (int64_t c = 0; c < stride_; ++c) out[c] += share * cell[c];
    }
  }
}

template <typename Number>
void Walk<Number>::step_band(const Band& band, int64_t image, int64_t from, const MatrixBatch& seeds) const {
  const int64_t width = problem_.width, rows_at_once = std::max<int64_t>(1, kRowsAtOnce / width);
  Number* next = p_of(1 - from, image);
  for (int64_t y = band.begin; y < band.end; y += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, band.end - y), first = y * width, count = rows * width;
    Number* out = next + first * stride_;
    if (alpha_ == 1)
      std::fill(out, out + count * stride_, Number(0));
    else
      load_labels(seeds, image, first, count, 1 - alpha_, stride_, out);
    if (problem_.rank > 0 || problem_.dense.present()) add_global(image, first, count, from, out);
    if (problem_.graph.present())
      best_kernels_of<Number>().sparse_product({.row_pointers = problem_.graph.pointers_of(image),
                                                .columns = problem_.graph.columns_of(image),
                                                .values = problem_.graph.template values_of<Number>(image),
                                                .p = p_of(from, image),
                                                .out = out,
                                                .row_begin = first,
                                                .row_end = first + count,
                                                .stride = stride_,
                                                .scale = alpha_ * static_cast<Number>(problem_.local_share)});
    if (problem_.local_values.present())
      for (int64_t row = 0; row < rows; ++row)
        add_window_row(problem_, image, y + row, p_of(from, image), stride_, alpha_, out + row * width * stride_);
  }
}

template <typename Number>
void Walk<Number>::run(const MatrixBatch& seeds, const MatrixBatch& start, int64_t steps, bool normalize,
                       Tensor& out) {
  const int64_t width = problem_.width, num_bands = static_cast<int64_t>(bands_.size());
  const auto average_band = [&](const Band& band, int64_t image, int64_t which) {
    for (int64_t row = band.cell_begin; row < band.cell_end; ++row)
      for (int64_t column = 0; column < problem_.cell_columns; ++column)
        average_cell(p_of(which, image), row, column,
                     pooled_of(which, image) + (row * problem_.cell_columns + column) * stride_);
  };
  // step 0 is the start itself
  for (int64_t step = 0; step <= steps; ++step) {
    const int64_t which = step % 2;
    const bool is_last = step == steps;
    for_each_task(problem_.batch * num_bands, [&](auto next) {
      for (int64_t task; next(task);) {
        const int64_t image = task / num_bands;
        const Band& band = bands_[task % num_bands];
        const int64_t first = band.begin * width, count = (band.end - band.begin) * width;
        if (step == 0)
          load_labels(start, image, first, count, Number(1), stride_, p_of(which, image) + first * stride_);
        else
          step_band(band, image, 1 - which, seeds);
        if (is_last)
          store_labels(p_of(which, image) + first * stride_, stride_, image, first, count, normalize, out);
        else if (whole_cells_)
          average_band(band, image, which);
      }
    });
    if (!is_last && problem_.rank > 0 && !whole_cells_) pool(which);
    if constexpr (std::is_same_v<Number, float>)
      if (!is_last && bf16_global_.has_value()) bf16_global_->set_pooled(pooled_of(which, 0));
  }
}

template class Walk<float>;
template class Walk<double>;

}  // namespace nerve_kernels::cpu
