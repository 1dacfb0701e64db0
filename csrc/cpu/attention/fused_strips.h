#pragma once

// The fused map Σ_h w_h e^(s - lse), strip by strip: a group of query rows times a few panels of keys, heads summed
// inside, so that the map itself never exists. Who needs the map's rows, whole or summed into cells, is a sink.

#include <algorithm>

#include "attention_inputs.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {

// A task reads the keys of all heads, which do not fit into L2: more rows share them than in a task of the entropy.
constexpr int64_t kGroupsPerFusedTask = 16;

template <typename Number>
struct FusedAttention {
  FusedAttention(const torch::stable::Tensor& q, const torch::stable::Tensor& k, const torch::stable::Tensor& w,
                 const torch::stable::Tensor& lse_, double scale_)
      : kernels(best_kernels_of<Number>()),
        queries(q),
        num_keys(k.size(2)),
        keys(k, kernels.tile),
        weights(read_weights<Number>(w)),
        lse_storage(torch::stable::contiguous(lse_)),
        lse(static_cast<const Number*>(lse_storage.const_data_ptr())),
        scale(static_cast<Number>(scale_)) {}

  const KernelsOf<Number>& kernels;
  Tokens queries;
  int64_t num_keys;
  PackedKeys<Number> keys;
  std::vector<Number> weights;
  torch::stable::Tensor lse_storage;
  const Number* lse;
  Number scale;
};

// For each task, `make_sink(b, first_row, rows)` is asked for an object whose
//   take(row, first_key, num_keys, const Number* sums)
// receives every row's strips in ascending order of keys; `row` counts from the task's first row.
template <typename Number, typename MakeSink>
void for_fused_strips(const FusedAttention<Number>& problem, MakeSink&& make_sink) {
  const Tokens& queries = problem.queries;
  const TileSizes& tile = problem.kernels.tile;
  const int64_t strip_keys = tile.keys_at_once(), head_size = queries.channels, heads = queries.heads;
  const int64_t groups_each = groups_per_task(ceil_div(queries.count, tile.rows), queries.batch, kGroupsPerFusedTask);
  const int64_t rows_each = groups_each * tile.rows, blocks = ceil_div(queries.count, rows_each);

  for_each_task(queries.batch * blocks, [&](auto next) {
    std::vector<Number> packed_queries(heads * rows_each * head_size), lse(heads * rows_each);
    std::vector<Number> sums(tile.rows * strip_keys);
    for (int64_t task; next(task);) {
      const int64_t b = task / blocks, first = task % blocks * rows_each;
      const int64_t rows = std::min(rows_each, queries.count - first), groups = ceil_div(rows, tile.rows);
      for (int64_t head = 0; head < heads; ++head) {
        pack_groups(queries, b, head, first, rows, problem.scale, tile,
                    packed_queries.data() + head * rows_each * head_size);
        const Number* from = problem.lse + (b * heads + head) * queries.count + first;
        std::copy(from, from + rows, lse.data() + head * rows_each);
      }
      auto sink = make_sink(b, first, rows);
      for (int64_t panel = 0; panel < problem.keys.panels(); panel += tile.panels_at_once) {
        const int64_t first_key = panel * tile.keys, keys = std::min(strip_keys, problem.num_keys - first_key);
        for (int64_t group = 0; group < groups; ++group) {
          std::fill(sums.begin(), sums.end(), Number(0));
          for (int64_t head = 0; head < heads; ++head) {
            ProbabilityTask<Number> strip = {};
            strip.q = packed_queries.data() + (head * rows_each + group * tile.rows) * head_size;
            strip.k = problem.keys.panel(b, head, panel);
            strip.panels = ceil_div(keys, tile.keys);
            strip.head_size = head_size;
            strip.lse = lse.data() + head * rows_each + group * tile.rows;
            strip.weight = problem.weights[b * heads + head];
            strip.sums = sums.data();
            problem.kernels.add_probabilities(strip);
          }
          for (int64_t row = group * tile.rows; row < std::min(rows, (group + 1) * tile.rows); ++row)
            sink.take(row, first_key, keys, sums.data() + (row - group * tile.rows) * strip_keys);
        }
      }
    }
  });
}

}  // namespace nerve_kernels::cpu
