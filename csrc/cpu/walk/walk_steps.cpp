// The passes of one step: restart, left * (right * P), window, averages over cells; a task is a band of grid rows.

#include "walk_steps.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "../kernels/block_product.h"
#include "matrix_product.h"
#include "../work_stealing.h"
#include "../kernels/window_rows.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kWindowNumbers = 4096;  // window values widened at a time; longer windows are widened beforehand
// A product of `right` with P is cut into about so many tasks, by tokens where its rank is too small for that.
constexpr int64_t kGatherTasks = 16, kTokensPerChunk = 256;

int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

template <typename Number>
Walk<Number>::Walk(const WalkProblem& problem, double alpha, const Tensor& like)
    : problem_(problem), alpha_(static_cast<Number>(alpha)) {
  const int64_t quantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
  stride_ = ceil_div(problem.num_labels, quantum) * quantum;
  bands_ = make_bands(problem, whole_cells_);
  const int64_t labels = problem.batch * problem.num_tokens() * stride_;
  const int64_t gathered = problem.is_dense ? 0 : problem.batch * problem.rank * stride_;
  if (problem.right.present()) {
    const int64_t tasks = problem.batch * ceil_div(problem.rank, kRowsAtOnce);
    chunks_ = std::clamp<int64_t>(kGatherTasks / tasks, 1, ceil_div(problem.num_tokens(), kTokensPerChunk));
  }
  const int64_t buffers = whole_cells_ ? 2 : chunks_;
  const int64_t alignment = 64 / static_cast<int64_t>(sizeof(Number));
  const auto padded = [&](int64_t count) { return ceil_div(count, alignment) * alignment; };
  const bool has_bf16_left = std::is_same_v<Number, float> && Bf16Left::suits(problem);
  const int64_t bf16_numbers = has_bf16_left ? Bf16Left::numbers_needed(problem, stride_) : 0;
  storage_ = torch::stable::new_empty(
      like, {2 * padded(labels) + buffers * padded(gathered) + bf16_numbers + alignment}, dtype_of<Number>);
  auto address = reinterpret_cast<uintptr_t>(storage_.mutable_data_ptr());
  auto* data = reinterpret_cast<Number*>((address + 63) / 64 * 64);
  labels_[0] = data;
  labels_[1] = data + padded(labels);
  gathered_[0] = labels_[1] + padded(labels);
  gathered_[1] = whole_cells_ ? gathered_[0] + padded(gathered) : gathered_[0];
  if constexpr (std::is_same_v<Number, float>)
    if (has_bf16_left) bf16_left_.emplace(problem, stride_, gathered_[0] + buffers * padded(gathered));
}

template <typename Number>
void Walk<Number>::load(const MatrixBatch& from, int64_t image, int64_t first, int64_t count, Number factor,
                        Number* to) const {
  const int64_t labels = problem_.num_labels;
  with_dtype(from.dtype, "seeds", [&](auto stored) {
    using Stored = decltype(stored);
    for (int64_t token = 0; token < count; ++token, to += stride_) {
      const auto* row = reinterpret_cast<const Stored*>(from.at(image, first + token, 0));
      if (from.column_stride == 1)
        for (int64_t c = 0; c < labels; ++c) to[c] = static_cast<Number>(row[c]) * factor;
      else
        for (int64_t c = 0; c < labels; ++c) to[c] = static_cast<Number>(row[c * from.column_stride]) * factor;
      std::fill(to + labels, to + stride_, Number(0));
    }
  });
}

template <typename Number>
void Walk<Number>::average_cell(const Number* labels, int64_t row, int64_t column, Number* out) const {
  const auto sum_tokens = best_block_product_kernels().of<Number>().sum_tokens;
  const int64_t top = WalkProblem::cell_begin(row, problem_.cells_high, problem_.height);
  const int64_t bottom = WalkProblem::cell_begin(row + 1, problem_.cells_high, problem_.height);
  const int64_t left = WalkProblem::cell_begin(column, problem_.cells_wide, problem_.width);
  const int64_t right = WalkProblem::cell_begin(column + 1, problem_.cells_wide, problem_.width);
  std::fill(out, out + stride_, Number(0));
  for (int64_t y = top; y < bottom; ++y)
    sum_tokens({labels + (y * problem_.width + left) * stride_, stride_, right - left, out});
  const Number share = Number(1) / static_cast<Number>((bottom - top) * (right - left));
  for (int64_t c = 0; c < stride_; ++c) out[c] *= share;
}

template <typename Number>
void Walk<Number>::gather(int64_t which) {
  if (problem_.averages_cells()) {
    const int64_t cells = problem_.rank;
    torch::stable::parallel_for(0, problem_.batch * cells, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / cells, cell = task % cells;
        average_cell(labels_of(which, image), cell / problem_.cells_wide, cell % problem_.cells_wide,
                     gathered_of(which, image) + cell * stride_);
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
      Number* out = gathered_[0] + chunk * all + (image * problem_.rank + row) * stride_;
      std::fill(out, out + rows * stride_, Number(0));
      add_product(problem_.right, image, row, rows, first, std::min(tokens, problem_.num_tokens() - first),
                  labels_of(which, image) + first * stride_, stride_, Number(1), out);
    }
  });
  if (chunks_ == 1) return;
  torch::stable::parallel_for(0, problem_.batch * problem_.rank, 64, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk)
      for (int64_t i = begin * stride_; i < end * stride_; ++i) gathered_[0][i] += gathered_[0][chunk * all + i];
  });
}

template <typename Number>
void Walk<Number>::add_left(int64_t image, int64_t first, int64_t count, int64_t from, Number* out) const {
  const Number scale = alpha_ * static_cast<Number>(problem_.left_share);
  if (problem_.is_dense) {
    add_product(problem_.left, image, first, count, 0, problem_.rank, labels_of(from, image), stride_, scale, out);
  } else if (bf16_left_.has_value()) {
    if constexpr (std::is_same_v<Number, float>) bf16_left_->add(image, first, count, scale, out);
  } else if (problem_.left.present()) {
    add_product(problem_.left, image, first, count, 0, problem_.rank, gathered_of(from, image), stride_, scale, out);
  } else {
    // spread: each token takes its cell's value divided by the cell's size
    for (int64_t token = first; token < first + count; ++token, out += stride_) {
      const int64_t y = token / problem_.width, x = token % problem_.width;
      // the cell of a position p is the last that begins at p or before
      const int64_t row = ((y + 1) * problem_.cells_high - 1) / problem_.height;
      const int64_t column = ((x + 1) * problem_.cells_wide - 1) / problem_.width;
      const auto size = [](int64_t index, int64_t cells, int64_t side) {
        return WalkProblem::cell_begin(index + 1, cells, side) - WalkProblem::cell_begin(index, cells, side);
      };
      const Number share = scale / static_cast<Number>(size(row, problem_.cells_high, problem_.height) *
                                                       size(column, problem_.cells_wide, problem_.width));
      const Number* cell = gathered_of(from, image) + (row * problem_.cells_wide + column) * stride_;
      for (int64_t c = 0; c < stride_; ++c) out[c] += share * cell[c];
    }
  }
}

template <typename Number>
void Walk<Number>::add_window(int64_t image, int64_t y, int64_t from, Number* out) const {
  const auto multiply_row = best_window_row_kernels().of<Number>();
  const int64_t size = problem_.window_height * problem_.window_width;
  WindowRow<Number> row = {};
  row.labels = labels_of(from, image);
  row.out = out;
  row.stride = stride_;
  row.y = y;
  row.height = problem_.height;
  row.width = problem_.width;
  row.window_height = problem_.window_height;
  row.window_width = problem_.window_width;
  row.scale = alpha_ * static_cast<Number>(problem_.local_share);
  if (problem_.values.dtype == dtype_of<Number>) {
    row.values = reinterpret_cast<const Number*>(problem_.values.at(image, y * problem_.width, 0));
    row.x_end = problem_.width;
    multiply_row(row);
    return;
  }
  alignas(64) Number converted[kWindowNumbers];
  const int64_t tokens = kWindowNumbers / size;
  for (int64_t x = 0; x < problem_.width; x += tokens) {
    row.x_begin = x;
    row.x_end = std::min(x + tokens, problem_.width);
    convert_block(problem_.values, image, y * problem_.width + x, 1, 0, (row.x_end - x) * size, converted, 0);
    row.values = converted - x * size;
    multiply_row(row);
  }
}

template <typename Number>
void Walk<Number>::step_band(const Band& band, int64_t image, int64_t from, const MatrixBatch& seeds) const {
  const int64_t width = problem_.width, rows_at_once = std::max<int64_t>(1, kRowsAtOnce / width);
  Number* next = labels_of(1 - from, image);
  for (int64_t y = band.begin; y < band.end; y += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, band.end - y), first = y * width, count = rows * width;
    Number* out = next + first * stride_;
    if (alpha_ == 1)
      std::fill(out, out + count * stride_, Number(0));
    else
      load(seeds, image, first, count, 1 - alpha_, out);
    if (problem_.rank > 0) add_left(image, first, count, from, out);
    if (problem_.values.present())
      for (int64_t row = 0; row < rows; ++row) add_window(image, y + row, from, out + row * width * stride_);
  }
}

template <typename Number>
void Walk<Number>::finish(int64_t image, int64_t first, int64_t count, int64_t which, bool normalize,
                          Tensor& out) const {
  constexpr int64_t kSums = 8;  // partial sums of a row, for speed and accuracy
  const int64_t labels = problem_.num_labels;
  Number* from = labels_of(which, image) + first * stride_;
  with_dtype(out.scalar_type(), "seeds", [&](auto label) {
    using Label = decltype(label);
    Label* to = static_cast<Label*>(out.mutable_data_ptr()) + (image * problem_.num_tokens() + first) * labels;
    for (int64_t token = 0; token < count; ++token, from += stride_, to += labels) {
      if (normalize) {
        Number sums[kSums] = {}, total = 0;
        int64_t c = 0;
        for (; c + kSums <= labels; c += kSums)
          for (int64_t i = 0; i < kSums; ++i) sums[i] += from[c + i];
        for (; c < labels; ++c) sums[c % kSums] += from[c];
        for (const Number sum : sums) total += sum;
        if (total != 0)
          for (int64_t i = 0; i < labels; ++i) from[i] /= total;
      }
      convert(from, to, labels);
    }
  });
}

template <typename Number>
void Walk<Number>::run(const MatrixBatch& seeds, const MatrixBatch& start, int64_t steps, bool normalize,
                       Tensor& out) {
  const int64_t width = problem_.width, num_bands = static_cast<int64_t>(bands_.size());
  const auto average_band = [&](const Band& band, int64_t image, int64_t which) {
    for (int64_t row = band.cell_begin; row < band.cell_end; ++row)
      for (int64_t column = 0; column < problem_.cells_wide; ++column)
        average_cell(labels_of(which, image), row, column,
                     gathered_of(which, image) + (row * problem_.cells_wide + column) * stride_);
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
          load(start, image, first, count, Number(1), labels_of(which, image) + first * stride_);
        else
          step_band(band, image, 1 - which, seeds);
        if (is_last)
          finish(image, first, count, which, normalize, out);
        else if (whole_cells_)
          average_band(band, image, which);
      }
    });
    if (!is_last && problem_.rank > 0 && !problem_.is_dense && !whole_cells_) gather(which);
    if constexpr (std::is_same_v<Number, float>)
      if (!is_last && bf16_left_.has_value()) bf16_left_->set_gathered(gathered_of(which, 0));
  }
}

template class Walk<float>;
template class Walk<double>;

}  // namespace nerve_kernels::cpu
