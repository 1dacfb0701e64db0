#pragma once

// Attention inside a window around each token, one grid row of queries and one head at a time.

#include <algorithm>
#include <limits>
#include <vector>

#include "attention_inputs.h"

namespace nerve_kernels::cpu {

struct Window {
  int64_t height, width;                // of the grid
  int64_t window_height, window_width;
  int64_t width_padded, window_width_padded, key_stride;

  Window(const std::vector<int64_t>& grid, const std::vector<int64_t>& window, int64_t lanes)
      : height(grid[0]),
        width(grid[1]),
        window_height(window[0]),
        window_width(window[1]),
        width_padded(round_up(width, lanes)),
        window_width_padded(round_up(window_width, kOffsetsAtOnce)),
        key_stride(round_up(width_padded + window_width_padded, lanes)) {}

  int64_t window_size() const { return window_height * window_width; }
  int64_t sums_per_row() const { return window_width_padded * width_padded; }
};

// What attention inside windows takes.
inline void check_window_inputs(const torch::stable::Tensor& q, const torch::stable::Tensor& k,
                                const torch::stable::Tensor& w, const torch::stable::Tensor& lse,
                                const std::vector<int64_t>& grid, const std::vector<int64_t>& window) {
  check_queries_and_keys(q, k);
  check_weights(w, q);
  check_lse(lse, q);
  check_grid(grid, q.size(2), "q");
  check_grid(grid, k.size(2), "k");
  check_window(window);
}

// Whether a window's sums can be divided by their own sum: below the smallest normal float32 there is no mass.
template <typename Number>
bool has_mass(Number mass) {
  return !(mass < static_cast<Number>(std::numeric_limits<float>::min()));
}

// Every grid row of keys, channels first, with room for the window on either side.
template <typename Number>
torch::stable::Tensor pack_key_rows(const torch::stable::Tensor& k, const Window& window) {
  const Tokens keys(k);
  const int64_t size = keys.channels * window.key_stride, left = window.window_width / 2;
  torch::stable::Tensor packed = allocate(k, {keys.batch * keys.heads * window.height * size}, dtype_of<Number>);
  auto* data = static_cast<Number*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, keys.batch * keys.heads * window.height, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / window.height, y = task % window.height;
      Number* out = data + task * size;
      for (int64_t channel = 0; channel < keys.channels; ++channel)
        std::fill(out + channel * window.key_stride, out + channel * window.key_stride + left, Number(0));
      pack_tile(keys, index / keys.heads, index % keys.heads, y * window.width, window.width, Number(1),
                window.key_stride - left, window.key_stride, out + left);
    }
  });
  return packed;
}

// A thread's room for the queries of a row.
template <typename Number>
class WindowRows {
 public:
  WindowRows(const Tokens& queries, const torch::stable::Tensor& packed_keys, const Number* lse, const Window& window,
             Number scale)
      : queries_(queries),
        keys_(static_cast<const Number*>(packed_keys.const_data_ptr())),
        lse_(lse),
        window_(window),
        scale_(scale),
        packed_queries_(queries.channels * window.width_padded),
        row_lse_(window.width_padded) {}

  // sums[dy][dx][x] += weight * e^(s - lse) of the tokens of grid row y; what is added for keys off the grid, in a row
  // that has any on it, is of no meaning.
  void add(int64_t b, int64_t head, int64_t y, Number weight, Number* sums) {
    const int64_t index = b * queries_.heads + head, channels = queries_.channels;
    pack_tile(queries_, b, head, y * window_.width, window_.width, scale_, window_.width_padded, window_.width_padded,
              packed_queries_.data());
    const Number* from = lse_ + index * queries_.count + y * window_.width;
    std::copy(from, from + window_.width, row_lse_.begin());
    WindowTask<Number> row = {};
    row.q = packed_queries_.data();
    row.lse = row_lse_.data();
    row.width_padded = window_.width_padded;
    row.key_stride = window_.key_stride;
    row.window_width_padded = window_.window_width_padded;
    row.head_size = channels;
    row.weight = weight;
    for (int64_t dy = 0; dy < window_.window_height; ++dy) {
      const int64_t key_y = y + dy - window_.window_height / 2;
      if (key_y < 0 || key_y >= window_.height) continue;
      row.k = keys_ + (index * window_.height + key_y) * channels * window_.key_stride;
      row.sums = sums + dy * window_.sums_per_row();
      best_kernels_of<Number>().add_window(row);
    }
  }

 private:
  Tokens queries_;
  const Number* keys_;
  const Number* lse_;
  Window window_;
  Number scale_;
  std::vector<Number> packed_queries_, row_lse_;
};

}  // namespace nerve_kernels::cpu
