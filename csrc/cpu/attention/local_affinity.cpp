// Attention inside a window around each token: a task is one grid row of queries, all heads, all rows of the window.

#include <algorithm>

#include "attention.h"
#include "window_rows.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

// Writes one token's row of (window_size) from the sums of its grid row, zero outside the grid, divided by its mass.
// Where there is no mass to divide by, the row becomes the identity.
template <typename Number>
void write_row(const Window& window, const Number* sums, int64_t y, int64_t x, bool normalize, Number* out) {
  Number mass = 0;
  for (int64_t dy = 0; dy < window.window_height; ++dy) {
    const int64_t key_y = y + dy - window.window_height / 2;
    for (int64_t dx = 0; dx < window.window_width; ++dx) {
      const int64_t key_x = x + dx - window.window_width / 2;
      const bool inside = key_y >= 0 && key_y < window.height && key_x >= 0 && key_x < window.width;
      const Number value = inside ? sums[(dy * window.window_width_padded + dx) * window.width_padded + x] : Number(0);
      out[dy * window.window_width + dx] = value;
      mass += value;
    }
  }
  if (!normalize) return;
  const int64_t size = window.window_size();
  if (has_mass(mass)) {
    for (int64_t o = 0; o < size; ++o) out[o] /= mass;
  } else {
    std::fill(out, out + size, Number(0));
    out[size / 2] = 1;
  }
}

template <typename Number>
void attend(const Tensor& q, const Tensor& k, const std::vector<Number>& weights, const Number* lse,
            const Window& window, Number scale, bool normalize, Number* out) {
  const Tokens queries(q);
  const Tensor packed_keys = pack_key_rows<Number>(k, window);
  const int64_t heads = queries.heads, num_tokens = queries.count;

  for_each_task(queries.batch * window.height, [&](auto next) {
    WindowRows<Number> rows(queries, packed_keys, lse, window, scale);
    std::vector<Number> sums(window.window_height * window.sums_per_row());
    for (int64_t task; next(task);) {
      const int64_t b = task / window.height, y = task % window.height;
      std::fill(sums.begin(), sums.end(), Number(0));
      for (int64_t head = 0; head < heads; ++head) rows.add(b, head, y, weights[b * heads + head], sums.data());
      for (int64_t x = 0; x < window.width; ++x)
        write_row(window, sums.data(), y, x, normalize,
                  out + (b * num_tokens + y * window.width + x) * window.window_size());
    }
  });
}

}  // namespace

Tensor local_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, std::vector<int64_t> grid, std::vector<int64_t> window,
                      double scale, bool normalize) {
  check_window_inputs(q, k, w, lse, grid, window);
  Tensor values = allocate(lse, {q.size(0), q.size(2), window[0] * window[1]});
  if (values.numel() == 0) return values;
  lse = torch::stable::contiguous(lse);
  with_number(lse.scalar_type() == ScalarType::Double, [&](auto number) {
    using Number = decltype(number);
    const Window geometry(grid, window, best_kernels_of<Number>().lanes);
    attend<Number>(q, k, read_weights<Number>(w), static_cast<const Number*>(lse.const_data_ptr()), geometry,
                   static_cast<Number>(scale), normalize, static_cast<Number*>(values.mutable_data_ptr()));
  });
  return values;
}

}  // namespace nerve_kernels::cpu
