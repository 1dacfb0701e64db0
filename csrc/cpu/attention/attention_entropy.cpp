// Entropy and log-sum-exp of every attention row: one streaming pass over the keys.

#include <algorithm>

#include "attention.h"
#include "attention_inputs.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {

std::tuple<Tensor, Tensor> attention_entropy(Tensor q, Tensor k, double scale) {
  check_queries_and_keys(q, k);
  const Tokens queries(q);
  const bool is_double = q.scalar_type() == ScalarType::Double || k.scalar_type() == ScalarType::Double;
  const ScalarType dtype = is_double ? ScalarType::Double : ScalarType::Float;
  Tensor entropy = allocate(q, {queries.batch, queries.heads, queries.count}, dtype);
  Tensor lse = allocate(q, {queries.batch, queries.heads, queries.count}, dtype);
  if (entropy.numel() == 0) return {entropy, lse};

  with_number(is_double, [&](auto number) {
    using Number = decltype(number);
    const KernelsOf<Number>& kernels = best_kernels_of<Number>();
    const PackedKeys<Number> keys(k, kernels.tile);
    auto* entropy_data = static_cast<Number*>(entropy.mutable_data_ptr());
    auto* lse_data = static_cast<Number*>(lse.mutable_data_ptr());
    const int64_t all_heads = queries.batch * queries.heads;
    const int64_t groups = groups_per_task(ceil_div(queries.count, kernels.tile.rows), all_heads, kGroupsAtOnce);
    const int64_t rows_each = groups * kernels.tile.rows, blocks = ceil_div(queries.count, rows_each);

    for_each_task(all_heads * blocks, [&](auto next) {
      std::vector<Number> packed_queries(rows_each * queries.channels);
      for (int64_t task; next(task);) {
        const int64_t index = task / blocks, first = task % blocks * rows_each;
        const int64_t b = index / queries.heads, head = index % queries.heads;
        const int64_t rows = std::min(rows_each, queries.count - first);
        pack_groups(queries, b, head, first, rows, static_cast<Number>(scale), kernels.tile, packed_queries.data());
        EntropyTask<Number> block = {};
        block.q = packed_queries.data();
        block.k = keys.panel(b, head, 0);
        block.rows = rows;
        block.keys = k.size(2);
        block.head_size = queries.channels;
        block.entropy = entropy_data + index * queries.count + first;
        block.lse = lse_data + index * queries.count + first;
        kernels.entropy(block);
      }
    });
  });
  return {entropy, lse};
}

}  // namespace nerve_kernels::cpu
