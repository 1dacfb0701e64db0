// Products of two matrices at the entries of a sparse graph, on tensors.

#include "sampled_product.h"


#include <algorithm>

#include "../allocation.h"
#include "../checks.h"
#include "../kernels/kernels.h"
#include "../work_stealing.h"
#include "labels.h"
#include "walk_problem.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kRowsPerTask = 64;

}  // namespace

using torch::stable::Tensor;

Tensor sampled_product(Tensor left, Tensor p, Tensor row_pointers, Tensor columns) {
  STD_TORCH_CHECK(p.dim() == 3, "p: expected (B, N, C), got ", p.dim(), " dimensions");
  const int64_t batch = p.size(0), num_tokens = p.size(1);
  check_part(left, "left", batch, num_tokens, p.size(2));
  check_part(p, "p", batch, num_tokens, p.size(2));
  STD_TORCH_CHECK(left.size(0) == batch, "left: expected the batch of p, ", batch, ", got ", left.size(0));
  const GraphBatch graph = make_graph(row_pointers, columns, batch, num_tokens);
  const int64_t entries = columns.size(1);
  const bool as_double = is_double(left) || is_double(p);
  Tensor out = allocate_zeros(p, {batch, entries}, number_dtype(as_double));
  if (out.numel() == 0 || p.size(2) == 0) return out;
  with_number(as_double, [&](auto number) {
    using Number = decltype(number);
    const int64_t stride = padded_labels<Number>(p.size(2));
    const Tensor packed_left = pack_labels<Number>(left, stride), packed_p = pack_labels<Number>(p, stride);
    const auto* left_data = static_cast<const Number*>(packed_left.const_data_ptr());
    const auto* p_data = static_cast<const Number*>(packed_p.const_data_ptr());
    auto* products = static_cast<Number*>(out.mutable_data_ptr());
    const auto multiply = best_kernels_of<Number>().sampled_product;
    const int64_t tasks = ceil_div(num_tokens, kRowsPerTask);
    for_each_task(batch * tasks, [&](auto next) {
      for (int64_t task; next(task);) {
        const int64_t image = task / tasks, first = task % tasks * kRowsPerTask;
        multiply({.row_pointers = graph.pointers_of(image),
                  .columns = graph.columns_of(image),
                  .left = left_data + image * num_tokens * stride,
                  .p = p_data + image * num_tokens * stride,
                  .products = products + image * entries,
                  .row_begin = first,
                  .row_end = std::min(first + kRowsPerTask, num_tokens),
                  .stride = stride});
      }
    });
  });
  return out;
}

}  // namespace nerve_kernels::cpu
