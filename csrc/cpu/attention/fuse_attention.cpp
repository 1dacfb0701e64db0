// The fused map itself, each entry written once.

#include "attention.h"
#include "fused_strips.h"

namespace nerve_kernels::cpu {
namespace {

template <typename Number, typename Output>
struct MapRows {
  Output* rows;
  int64_t num_keys;
  void take(int64_t row, int64_t first_key, int64_t keys, const Number* sums) {
    convert(sums, rows + row * num_keys + first_key, keys);
  }
};

}  // namespace

Tensor fuse_attention(Tensor q, Tensor k, Tensor w, Tensor lse, double scale) {
  check_queries_and_keys(q, k);
  check_weights(w, q);
  check_lse(lse, q);
  const int64_t queries = q.size(2), num_keys = k.size(2);
  Tensor fused = allocate(q, {q.size(0), queries, num_keys});
  if (fused.numel() == 0) return fused;
  with_number(lse.scalar_type() == ScalarType::Double, [&](auto number) {
    using Number = decltype(number);
    const FusedAttention<Number> problem(q, k, w, lse, scale);
    with_dtype(q.scalar_type(), "q", [&](auto output) {
      using Output = decltype(output);
      auto* data = static_cast<Output*>(fused.mutable_data_ptr());
      for_fused_strips<Number>(problem, [&](int64_t b, int64_t first, int64_t) {
        return MapRows<Number, Output>{data + (b * queries + first) * num_keys, num_keys};
      });
    });
  });
  return fused;
}

}  // namespace nerve_kernels::cpu
