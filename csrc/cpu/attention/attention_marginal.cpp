// The mean attention each key receives: a task owns a strip of keys and goes over all queries, so that no two tasks add
// to the same number.

#include <algorithm>
#include <limits>

#include "attention.h"
#include "attention_inputs.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

// Rows added up in one go before they join the total: two short sums lose less than one long one.
constexpr int64_t kGroupsPerSum = 16;

template <typename Number>
void sum_columns(const Tokens& queries, int64_t b, int64_t head, const Number* lse, Number scale,
                 const KernelsOf<Number>& kernels, const Number* panels, int64_t keys, Number* out) {
  const TileSizes& tile = kernels.tile;
  std::vector<Number> packed(tile.rows * queries.channels), group_lse(tile.rows);
  std::vector<Number> sums(tile.rows * tile.keys_at_once());
  std::fill(out, out + keys, Number(0));
  for (int64_t first = 0; first < queries.count; first += tile.rows) {
    const int64_t rows = std::min(tile.rows, queries.count - first);
    pack_groups(queries, b, head, first, rows, scale, tile, packed.data());
    std::copy(lse + first, lse + first + rows, group_lse.begin());
    // rows that only fill the last group up add e^-inf = 0
    std::fill(group_lse.begin() + rows, group_lse.end(), std::numeric_limits<Number>::infinity());
    ProbabilityTask<Number> strip = {};
    strip.q = packed.data();
    strip.k = panels;
    strip.panels = ceil_div(keys, tile.keys);
    strip.head_size = queries.channels;
    strip.lse = group_lse.data();
    strip.weight = 1;
    strip.sums = sums.data();
    kernels.add_probabilities(strip);
    const bool last = first + tile.rows >= queries.count;
    if (!last && (first / tile.rows + 1) % kGroupsPerSum != 0) continue;
    for (int64_t row = 0; row < tile.rows; ++row)
      for (int64_t key = 0; key < keys; ++key) out[key] += sums[row * tile.keys_at_once() + key];
    std::fill(sums.begin(), sums.end(), Number(0));
  }
  for (int64_t key = 0; key < keys; ++key) out[key] /= static_cast<Number>(queries.count);
}

}  // namespace

Tensor attention_marginal(Tensor q, Tensor k, Tensor lse, double scale) {
  check_queries_and_keys(q, k);
  check_lse(lse, q);
  const Tokens queries(q);
  const int64_t num_keys = k.size(2);
  Tensor marginal = allocate_zeros(lse, {queries.batch, queries.heads, num_keys});
  if (q.numel() == 0) return marginal;
  lse = torch::stable::contiguous(lse);
  with_number(lse.scalar_type() == ScalarType::Double, [&](auto number) {
    using Number = decltype(number);
    const KernelsOf<Number>& kernels = best_kernels_of<Number>();
    const PackedKeys<Number> keys(k, kernels.tile);
    const auto* lse_data = static_cast<const Number*>(lse.const_data_ptr());
    auto* out = static_cast<Number*>(marginal.mutable_data_ptr());
    const int64_t strip_keys = kernels.tile.keys_at_once(), strips = ceil_div(num_keys, strip_keys);
    for_each_task(queries.batch * queries.heads * strips, [&](auto next) {
      for (int64_t task; next(task);) {
        const int64_t index = task / strips, strip = task % strips;
        const int64_t b = index / queries.heads, head = index % queries.heads;
        sum_columns(queries, b, head, lse_data + index * queries.count, static_cast<Number>(scale), kernels,
                    keys.panel(b, head, strip * kernels.tile.panels_at_once),
                    std::min(strip_keys, num_keys - strip * strip_keys), out + index * num_keys + strip * strip_keys);
      }
    });
  });
  return marginal;
}

}  // namespace nerve_kernels::cpu
