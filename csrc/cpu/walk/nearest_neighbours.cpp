// Graphs of nearest neighbours: which columns of a row are the largest, and a graph plus its transpose.

#include "nearest_neighbours.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../allocation.h"
#include "../checks.h"
#include "../dtypes.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kRowsPerTask = 16;

// Numbers as integers in the same order, which is total: what is not a number is the least.
template <typename Number>
using KeyOf = std::conditional_t<std::is_same_v<Number, double>, uint64_t, uint32_t>;

template <typename Number>
KeyOf<Number> key_of(Number number) {
  if (number != number) return 0;
  const Number plus = number + Number(0);  // -0 and 0 are equal
  KeyOf<Number> bits;
  std::memcpy(&bits, &plus, sizeof(bits));
  constexpr KeyOf<Number> kSign = KeyOf<Number>(1) << (8 * sizeof(Number) - 1);
  return bits & kSign ? ~bits : bits | kSign;
}

template <typename Number>
void choose(const Number* products, int64_t tokens, int64_t k, std::vector<KeyOf<Number>>& keys,
            std::vector<KeyOf<Number>>& shuffled, int32_t* columns) {
  for (int64_t j = 0; j < tokens; ++j) keys[j] = key_of(products[j]);
  shuffled = keys;
  std::nth_element(shuffled.begin(), shuffled.begin() + (k - 1), shuffled.end(), std::greater<>());
  const KeyOf<Number> smallest = shuffled[k - 1];
  int64_t room = k;
  for (int64_t j = 0; j < tokens; ++j) room -= keys[j] > smallest;
  for (int64_t j = 0; j < tokens; ++j) {
    const bool fills_up = keys[j] == smallest && room > 0;
    if (keys[j] > smallest || fills_up) *columns++ = static_cast<int32_t>(j);
    room -= fills_up;
  }
}

// Rows of the graph and of its transpose, both ascending, merged.
template <typename Number>
class Transposed {
 public:
  Transposed(const int32_t* columns, const Number* weights, int64_t tokens, int64_t k)
      : columns_(columns), weights_(weights), k_(k), begins_(tokens + 1), sources_(tokens * k), places_(tokens * k) {
    for (int64_t e = 0; e < tokens * k; ++e)
      if (weights[e] != 0) ++begins_[columns[e] + 1];
    for (int64_t i = 0; i < tokens; ++i) begins_[i + 1] += begins_[i];
    std::vector<int64_t> next(begins_.begin(), begins_.end() - 1);
    for (int64_t row = 0; row < tokens; ++row)
      for (int64_t e = row * k; e < (row + 1) * k; ++e)
        if (weights[e] != 0) {
          const int64_t to = next[columns[e]]++;
          sources_[to] = static_cast<int32_t>(row);
          places_[to] = e;
        }
  }

  // Calls take(column, value) for each entry of a row of W + W^T in ascending order.
  template <typename Take>
  void merge(int64_t row, Take&& take) const {
    int64_t own = row * k_, other = begins_[row];
    const int64_t own_end = own + k_, other_end = begins_[row + 1];
    constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
    for (;;) {
      while (own < own_end && weights_[own] == 0) ++own;
      const int32_t left = own < own_end ? columns_[own] : kNone;
      const int32_t right = other < other_end ? sources_[other] : kNone;
      if (left == kNone && right == kNone) return;
      Number value = 0;
      if (left <= right) value += weights_[own++];
      if (right <= left) value += weights_[places_[other++]];
      take(std::min(left, right), value);
    }
  }

 private:
  const int32_t* columns_;
  const Number* weights_;
  int64_t k_;
  std::vector<int64_t> begins_;
  std::vector<int32_t> sources_;
  std::vector<int64_t> places_;
};

}  // namespace

Tensor nearest_columns(Tensor products, int64_t k) {
  STD_TORCH_CHECK(products.dim() == 2, "products: expected (rows, N), got ", products.dim(), " dimensions");
  const int64_t rows = products.size(0), tokens = products.size(1);
  STD_TORCH_CHECK(k >= 1 && k <= tokens, "k: expected 1 to N = ", tokens, ", got ", k);
  STD_TORCH_CHECK(tokens < std::numeric_limits<int32_t>::max(), "products: expected fewer than 2^31 columns");
  STD_TORCH_CHECK(products.scalar_type() == ScalarType::Float || is_double(products),
                  "products: expected float32 or float64, got ", products.scalar_type());
  Tensor columns = allocate(products, {rows, k}, ScalarType::Int);
  products = torch::stable::contiguous(products);
  auto* out = static_cast<int32_t*>(columns.mutable_data_ptr());
  with_number(is_double(products), [&](auto number) {
    using Number = decltype(number);
    const auto* data = static_cast<const Number*>(products.const_data_ptr());
    for_each_task(ceil_div(rows, kRowsPerTask), [&](auto next) {
      std::vector<KeyOf<Number>> keys(tokens), shuffled(tokens);
      for (int64_t task; next(task);)
        for (int64_t row = task * kRowsPerTask; row < std::min(rows, (task + 1) * kRowsPerTask); ++row)
          choose(data + row * tokens, tokens, k, keys, shuffled, out + row * k);
    });
  });
  return columns;
}

std::tuple<Tensor, Tensor, Tensor> add_transpose(Tensor columns, Tensor weights) {
  STD_TORCH_CHECK(columns.dim() == 2 && weights.dim() == 2 && columns.size(0) == weights.size(0) &&
                      columns.size(1) == weights.size(1) && columns.scalar_type() == ScalarType::Int,
                  "columns, weights: expected (N, k) both, columns in int32");
  const int64_t tokens = columns.size(0), k = columns.size(1);
  columns = torch::stable::contiguous(columns);
  weights = torch::stable::contiguous(weights);
  const auto* from = static_cast<const int32_t*>(columns.const_data_ptr());
  for (int64_t e = 0; e < tokens * k; ++e)
    STD_TORCH_CHECK(from[e] >= 0 && from[e] < tokens, "columns: expected tokens from 0 to ", tokens - 1, ", got ", from[e]);
  Tensor pointers = allocate_zeros(weights, {tokens + 1}, ScalarType::Long);
  Tensor targets = allocate_zeros(weights, {2 * tokens * k}, ScalarType::Int);
  Tensor values = allocate_zeros(weights, {2 * tokens * k});
  auto* ends = static_cast<int64_t*>(pointers.mutable_data_ptr());
  auto* to = static_cast<int32_t*>(targets.mutable_data_ptr());
  const int64_t tasks = ceil_div(tokens, kRowsPerTask);
  with_number(is_double(weights), [&](auto number) {
    using Number = decltype(number);
    const Transposed<Number> graph(from, static_cast<const Number*>(weights.const_data_ptr()), tokens, k);
    auto* sums = static_cast<Number*>(values.mutable_data_ptr());
    const auto for_rows = [&](auto work) {
      for_each_task(tasks, [&](auto next) {
        for (int64_t task; next(task);)
          for (int64_t row = task * kRowsPerTask; row < std::min(tokens, (task + 1) * kRowsPerTask); ++row) work(row);
      });
    };
    for_rows([&](int64_t row) {
      int64_t count = 0;
      graph.merge(row, [&](int32_t, Number) { ++count; });
      ends[row + 1] = count;
    });
    for (int64_t row = 0; row < tokens; ++row) ends[row + 1] += ends[row];
    for_rows([&](int64_t row) {
      int64_t place = ends[row];
      graph.merge(row, [&](int32_t column, Number value) {
        to[place] = column;
        sums[place++] = value;
      });
    });
  });
  return {pointers, targets, values};
}

}  // namespace nerve_kernels::cpu
