// Checks and packing that the attention ops share.

#include "attention_inputs.h"

#include <algorithm>

namespace nerve_kernels::cpu {

using torch::stable::Tensor;

Tokens::Tokens(const Tensor& tensor)
    : data(static_cast<const char*>(tensor.const_data_ptr())),
      dtype(tensor.scalar_type()),
      batch(tensor.size(0)),
      heads(tensor.size(1)),
      count(tensor.size(2)),
      channels(tensor.size(3)),
      stride{tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)} {}

void check_queries_and_keys(const Tensor& q, const Tensor& k) {
  STD_TORCH_CHECK(q.dim() == 4, "q: expected (B, heads, N, d), got ", q.dim(), " dimensions");
  STD_TORCH_CHECK(k.dim() == 4, "k: expected (B, heads, N_k, d), got ", k.dim(), " dimensions");
  STD_TORCH_CHECK(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3),
                  "k: expected batch, heads and head size of q: only the number of tokens may differ");
  STD_TORCH_CHECK(k.size(2) > 0 && k.size(3) > 0, "k: expected at least one key and one channel");
  with_dtype(q.scalar_type(), "q", [](auto) {});
  with_dtype(k.scalar_type(), "k", [](auto) {});
}

void check_lse(const Tensor& lse, const Tensor& q) {
  STD_TORCH_CHECK(lse.dim() == 3 && lse.size(0) == q.size(0) && lse.size(1) == q.size(1) && lse.size(2) == q.size(2),
                  "lse: expected (B, heads, N) of q");
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Float || lse.scalar_type() == ScalarType::Double,
                  "lse: expected float32 or float64, got ", lse.scalar_type());
}

void check_weights(const Tensor& w, const Tensor& q) {
  STD_TORCH_CHECK(w.dim() == 2 && w.size(0) == q.size(0) && w.size(1) == q.size(1),
                  "w: expected (B, heads), one weight for each head");
  with_dtype(w.scalar_type(), "w", [](auto) {});
}

template <typename Number>
void pack_tile(const Tokens& tokens, int64_t b, int64_t head, int64_t first, int64_t count, Number factor,
               int64_t lanes, int64_t out_stride, Number* out) {
  with_dtype(tokens.dtype, "the input", [&](auto input) {
    using Input = decltype(input);
    const Input* from = reinterpret_cast<const Input*>(tokens.data) + b * tokens.stride[0] + head * tokens.stride[1] +
        first * tokens.stride[2];
    for (int64_t lane = 0; lane < count; ++lane) {
      const Input* token = from + lane * tokens.stride[2];
      for (int64_t channel = 0; channel < tokens.channels; ++channel)
        out[channel * out_stride + lane] = static_cast<Number>(token[channel * tokens.stride[3]]) * factor;
    }
  });
  if (count < lanes)
    for (int64_t channel = 0; channel < tokens.channels; ++channel)
      std::fill(out + channel * out_stride + count, out + channel * out_stride + lanes, Number(0));
}

template <typename Number>
void pack_rows(const Tokens& tokens, int64_t b, int64_t head, int64_t first, int64_t count, Number factor,
               int64_t stride, Number* out) {
  with_dtype(tokens.dtype, "the input", [&](auto input) {
    using Input = decltype(input);
    const Input* token = reinterpret_cast<const Input*>(tokens.data) + b * tokens.stride[0] + head * tokens.stride[1] +
        first * tokens.stride[2];
    for (int64_t row = 0; row < count; ++row, token += tokens.stride[2], out += stride) {
      if (tokens.stride[3] == 1)
        for (int64_t channel = 0; channel < tokens.channels; ++channel)
          out[channel] = static_cast<Number>(token[channel]) * factor;
      else
        for (int64_t channel = 0; channel < tokens.channels; ++channel)
          out[channel] = static_cast<Number>(token[channel * tokens.stride[3]]) * factor;
      std::fill(out + tokens.channels, out + stride, Number(0));
    }
  });
}

template <typename Number>
Tensor pack_all_rows(const Tensor& tensor, int64_t stride) {
  const Tokens tokens(tensor);
  const int64_t all = tokens.batch * tokens.heads;
  Tensor packed = allocate(tensor, {all, tokens.count, stride}, dtype_of<Number>);
  auto* data = static_cast<Number*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, all, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index)
      pack_rows(tokens, index / tokens.heads, index % tokens.heads, 0, tokens.count, Number(1), stride,
                data + index * tokens.count * stride);
  });
  return packed;
}

template <typename Number>
PackedKeys<Number>::PackedKeys(const Tensor& k, const TileSizes& tile)
    : heads_(k.size(1)),
      panels_(ceil_div(k.size(2), tile.keys)),
      panel_size_(tile.keys * k.size(3)),
      storage_(allocate(k, {k.size(0) * heads_ * panels_ * panel_size_}, dtype_of<Number>)) {
  Number* data = static_cast<Number*>(storage_.mutable_data_ptr());
  data_ = data;
  const Tokens tokens(k);
  torch::stable::parallel_for(0, tokens.batch * heads_ * panels_, 8, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / panels_, first = task % panels_ * tile.keys;
      pack_tile(tokens, index / heads_, index % heads_, first, std::min(tile.keys, tokens.count - first), Number(1),
                tile.keys, tile.keys, data + task * panel_size_);
    }
  });
}

template <typename Number>
std::vector<Number> read_weights(const Tensor& w) {
  std::vector<Number> weights(w.size(0) * w.size(1));
  with_dtype(w.scalar_type(), "w", [&](auto input) {
    const auto* from = static_cast<const decltype(input)*>(w.const_data_ptr());
    for (int64_t b = 0; b < w.size(0); ++b)
      for (int64_t head = 0; head < w.size(1); ++head)
        weights[b * w.size(1) + head] = static_cast<Number>(from[b * w.stride(0) + head * w.stride(1)]);
  });
  return weights;
}

int64_t groups_per_task(int64_t groups, int64_t batches, int64_t max) {
  const int64_t tasks_wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  return std::clamp<int64_t>(groups * batches / tasks_wanted, 1, max);
}

template void pack_tile(const Tokens&, int64_t, int64_t, int64_t, int64_t, float, int64_t, int64_t, float*);
template void pack_tile(const Tokens&, int64_t, int64_t, int64_t, int64_t, double, int64_t, int64_t, double*);
template void pack_rows(const Tokens&, int64_t, int64_t, int64_t, int64_t, float, int64_t, float*);
template void pack_rows(const Tokens&, int64_t, int64_t, int64_t, int64_t, double, int64_t, double*);
template Tensor pack_all_rows<float>(const Tensor&, int64_t);
template Tensor pack_all_rows<double>(const Tensor&, int64_t);
template class PackedKeys<float>;
template class PackedKeys<double>;
template std::vector<float> read_weights(const Tensor&);
template std::vector<double> read_weights(const Tensor&);

}  // namespace nerve_kernels::cpu
