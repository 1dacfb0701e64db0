#pragma once

// Queries, keys and head weights as the kernels want them: checked, converted and packed, whatever their strides.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "../allocation.h"
#include "../checks.h"
#include "../dtypes.h"
#include "../kernels/kernels.h"

namespace nerve_kernels::cpu {

// A (B, heads, tokens, channels) tensor with any strides. It does not own the numbers.
struct Tokens {
  explicit Tokens(const torch::stable::Tensor& tensor);

  const char* data;
  ScalarType dtype;
  int64_t batch, heads, count, channels;
  int64_t stride[4];
};

void check_queries_and_keys(const torch::stable::Tensor& q, const torch::stable::Tensor& k);
void check_lse(const torch::stable::Tensor& lse, const torch::stable::Tensor& q);
void check_weights(const torch::stable::Tensor& w, const torch::stable::Tensor& q);

// `count` tokens of one head from `first` on, channels first: out[channel * out_stride + token], times `factor`.
// Lanes from `count` up to `lanes` become 0.
template <typename Number>
void pack_tile(const Tokens& tokens, int64_t b, int64_t head, int64_t first, int64_t count, Number factor,
               int64_t lanes, int64_t out_stride, Number* out);

// The same, token after token: out[token * stride + channel]. Channels up to `stride` become 0.
template <typename Number>
void pack_rows(const Tokens& tokens, int64_t b, int64_t head, int64_t first, int64_t count, Number factor,
               int64_t stride, Number* out);

// The same of all tokens: (B * heads, tokens, stride).
template <typename Number>
torch::stable::Tensor pack_all_rows(const torch::stable::Tensor& tensor, int64_t stride);

// All rows of one head from `first` on as groups of `tile.rows`.
template <typename Number>
void pack_groups(const Tokens& q, int64_t b, int64_t head, int64_t first, int64_t rows, Number scale,
                 const TileSizes& tile, Number* out) {
  for (int64_t row = 0; row < rows; row += tile.rows, out += tile.rows * q.channels)
    pack_tile(q, b, head, first + row, rows - row < tile.rows ? rows - row : tile.rows, scale, tile.rows, tile.rows,
              out);
}

// The keys of every head as panels, packed once and read by all tasks.
template <typename Number>
class PackedKeys {
 public:
  PackedKeys(const torch::stable::Tensor& k, const TileSizes& tile);

  int64_t panels() const { return panels_; }
  const Number* panel(int64_t b, int64_t head, int64_t index) const {
    return data_ + ((b * heads_ + head) * panels_ + index) * panel_size_;
  }

 private:
  int64_t heads_, panels_, panel_size_;
  torch::stable::Tensor storage_;
  const Number* data_;
};

// The weights (B, heads), contiguous.
template <typename Number>
std::vector<Number> read_weights(const torch::stable::Tensor& w);

// How many groups of rows a task takes: as many as may share a block of keys, but enough tasks for every thread. The
// result of a row does not depend on it.
int64_t groups_per_task(int64_t groups, int64_t batches, int64_t max);

}  // namespace nerve_kernels::cpu
