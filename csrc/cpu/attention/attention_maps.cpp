// Explicit attention maps: the entropy of their rows, their weighted sum over heads and its gradient, each number read
// once.

#include <algorithm>
#include <array>

#include "attention.h"
#include "attention_inputs.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;
constexpr int64_t kNumbersAtOnce = 1 << 12;  // of a row of sums, which stays in L1
constexpr int64_t kHeadsAtOnce = 4;
constexpr int64_t kSumsAtOnce = 16;  // of a product of two rows: what one vector of any instruction set holds

// One row of a map, in `Number`s; converted into `buffer` unless it already lies so.
template <typename Number>
const Number* read_row(const Tokens& maps, int64_t b, int64_t head, int64_t row, std::vector<Number>& buffer) {
  const Number* lying = nullptr;
  with_dtype(maps.dtype, "maps", [&](auto input) {
    using Input = decltype(input);
    const Input* from = reinterpret_cast<const Input*>(maps.data) + b * maps.stride[0] + head * maps.stride[1] +
        row * maps.stride[2];
    if constexpr (std::is_same_v<Input, Number>) {
      if (maps.stride[3] == 1) {
        lying = from;
        return;
      }
    }
    for (int64_t key = 0; key < maps.channels; ++key) buffer[key] = static_cast<Number>(from[key * maps.stride[3]]);
  });
  return lying != nullptr ? lying : buffer.data();
}

// total += weight[0] * first row + weight[1] * second row + ...: the sums are read and written once for all of them.
template <typename Number, typename... Rows>
void add_rows(Number* __restrict total, int64_t keys, const Number* weight, const Rows*... rows) {
  for (int64_t key = 0; key < keys; ++key) {
    const Number* of = weight;
    Number sum = total[key];
    ((sum += rows[key] * *of++), ...);
    total[key] = sum;
  }
}

// out = weight * grad; the sum of grad * map is returned.
template <typename Number>
Number spread_row(const Number* __restrict grad, const Number* __restrict map, Number weight, Number* __restrict out,
                  int64_t keys) {
  Number sums[kSumsAtOnce] = {};
  int64_t key = 0;
  for (; key + kSumsAtOnce <= keys; key += kSumsAtOnce)
    for (int64_t i = 0; i < kSumsAtOnce; ++i) {
      out[key + i] = weight * grad[key + i];
      sums[i] += grad[key + i] * map[key + i];
    }
  for (; key < keys; ++key) {
    out[key] = weight * grad[key];
    sums[key % kSumsAtOnce] += grad[key] * map[key];
  }
  Number sum = 0;
  for (const Number one : sums) sum += one;
  return sum;
}

void check_maps(const Tensor& maps) {
  STD_TORCH_CHECK(maps.dim() == 4, "maps: expected (B, heads, N, N_k), got ", maps.dim(), " dimensions");
  with_dtype(maps.scalar_type(), "maps", [](auto) {});
}

// Consecutive rows as one where they are contiguous: short rows of many heads are too many streams for the prefetcher,
// and all rows of a head have the same weight.
Tokens merge_rows(Tokens maps) {
  while (maps.stride[3] == 1 && maps.stride[2] == maps.channels && maps.count % 2 == 0 &&
         2 * maps.channels <= kNumbersAtOnce) {
    maps.count /= 2;
    maps.channels *= 2;
    maps.stride[2] *= 2;
  }
  return maps;
}

int64_t rows_per_task(int64_t numbers_each) {
  return std::max<int64_t>(1, kNumbersPerTask / std::max<int64_t>(1, numbers_each));
}

}  // namespace

Tensor attention_map_entropy(Tensor maps) {
  check_maps(maps);
  const Tokens rows(maps);
  const bool is_double = maps.scalar_type() == ScalarType::Double;
  Tensor entropy = allocate(maps, {rows.batch, rows.heads, rows.count},
                                            is_double ? ScalarType::Double : ScalarType::Float);
  with_number(is_double, [&](auto number) {
    using Number = decltype(number);
    const auto row_entropy = best_kernels_of<Number>().map_row_entropy;
    auto* out = static_cast<Number*>(entropy.mutable_data_ptr());
    const int64_t tasks = rows.batch * rows.heads * rows.count;
    torch::stable::parallel_for(0, tasks, rows_per_task(rows.channels), [&](int64_t begin, int64_t end) {
      std::vector<Number> buffer(rows.channels);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t index = task / rows.count;
        const Number* row = read_row(rows, index / rows.heads, index % rows.heads, task % rows.count, buffer);
        out[task] = row_entropy(row, rows.channels);
      }
    });
  });
  return entropy;
}

Tensor fuse_attention_maps(Tensor maps, Tensor w, bool widen) {
  check_maps(maps);
  check_weights(w, maps);
  const bool is_double = maps.scalar_type() == ScalarType::Double || w.scalar_type() == ScalarType::Double;
  const ScalarType dtype = widen ? number_dtype(is_double) : maps.scalar_type();
  Tensor fused = allocate(maps, {maps.size(0), maps.size(2), maps.size(3)}, dtype);
  if (fused.numel() == 0) return fused;
  const Tokens rows = merge_rows(Tokens(maps));
  with_number(is_double, [&](auto number) {
    using Number = decltype(number);
    const std::vector<Number> weights = read_weights<Number>(w);
    with_dtype(dtype, "maps", [&](auto output) {
      auto* out = static_cast<decltype(output)*>(fused.mutable_data_ptr());
      const int64_t grain = rows_per_task(rows.heads * rows.channels);
      torch::stable::parallel_for(0, rows.batch * rows.count, grain, [&](int64_t begin, int64_t end) {
        std::vector<Number> total(rows.channels);
        std::array<std::vector<Number>, kHeadsAtOnce> buffers;
        buffers.fill(std::vector<Number>(rows.channels));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t b = task / rows.count;
          std::fill(total.begin(), total.end(), Number(0));
          int64_t head = 0;
          const auto next_row = [&](int64_t buffer) {
            return read_row(rows, b, head + buffer, task % rows.count, buffers[buffer]);
          };
          const Number* weight = weights.data() + b * rows.heads;
          for (; head + kHeadsAtOnce <= rows.heads; head += kHeadsAtOnce)
            add_rows(total.data(), rows.channels, weight + head, next_row(0), next_row(1), next_row(2), next_row(3));
          for (; head < rows.heads; ++head) add_rows(total.data(), rows.channels, weight + head, next_row(0));
          convert(total.data(), out + task * rows.channels, rows.channels);
        }
      });
    });
  });
  return fused;
}

std::tuple<Tensor, Tensor> fuse_attention_maps_backward(Tensor grad, Tensor maps, Tensor w) {
  check_maps(maps);
  check_weights(w, maps);
  const Tokens rows(maps), grad_rows(grad);
  STD_TORCH_CHECK(grad_rows.batch == rows.batch && grad_rows.heads == 1 && grad_rows.count == rows.count &&
                      grad_rows.channels == rows.channels,
                  "grad: expected one map for each image, of the maps' size");
  const bool is_double = maps.scalar_type() == ScalarType::Double || w.scalar_type() == ScalarType::Double;
  const ScalarType dtype = maps.scalar_type();
  Tensor grad_maps = allocate(maps, {rows.batch, rows.heads, rows.count, rows.channels}, dtype);
  Tensor grad_w = allocate_zeros(maps, {rows.batch, rows.heads}, number_dtype(is_double));
  if (grad_maps.numel() == 0) return {grad_maps, grad_w};
  // what a block of rows adds to dw is kept, and added up in their order: blocks depend on sizes only
  const int64_t block = rows_per_task(rows.heads * rows.channels), blocks = ceil_div(rows.count, block);
  with_number(is_double, [&](auto number) {
    using Number = decltype(number);
    const std::vector<Number> weights = read_weights<Number>(w);
    std::vector<double> sums(rows.batch * blocks * rows.heads);
    with_dtype(dtype, "maps", [&](auto output) {
      using Output = decltype(output);
      auto* out = static_cast<Output*>(grad_maps.mutable_data_ptr());
      torch::stable::parallel_for(0, rows.batch * blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<Number> grad_buffer(rows.channels), map_buffer(rows.channels), spread(rows.channels);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t b = task / blocks, first = task % blocks * block, last = std::min(first + block, rows.count);
          for (int64_t row = first; row < last; ++row) {
            const Number* of_row = read_row(grad_rows, b, 0, row, grad_buffer);
            for (int64_t head = 0; head < rows.heads; ++head) {
              Output* to = out + ((b * rows.heads + head) * rows.count + row) * rows.channels;
              Number* made = spread.data();
              if constexpr (std::is_same_v<Output, Number>) made = to;
              sums[task * rows.heads + head] +=
                  spread_row(of_row, read_row(rows, b, head, row, map_buffer), weights[b * rows.heads + head], made,
                             rows.channels);
              if constexpr (!std::is_same_v<Output, Number>) convert(spread.data(), to, rows.channels);
            }
          }
        }
      });
    });
    auto* totals = static_cast<Number*>(grad_w.mutable_data_ptr());
    for (int64_t b = 0; b < rows.batch; ++b)
      for (int64_t head = 0; head < rows.heads; ++head) {
        double total = 0;
        for (int64_t i = 0; i < blocks; ++i) total += sums[(b * blocks + i) * rows.heads + head];
        totals[b * rows.heads + head] = static_cast<Number>(total);
      }
  });
  return {grad_maps, grad_w};
}

}  // namespace nerve_kernels::cpu
