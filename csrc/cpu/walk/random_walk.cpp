// The walk on tensors: checks, and what S is made of.

#include "random_walk.h"

#include <torch/csrc/stable/ops.h>

#include "walk_problem.h"
#include "walk_steps.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A row of low-precision window values up to this size is widened as it is used, a longer one beforehand.
constexpr int64_t kWidenedWindow = 4096;

bool is_double(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->scalar_type() == ScalarType::Double;
}

void check_part(const OptionalTensor& part, const char* name, int64_t batch, int64_t rows, int64_t columns) {
  if (!part.has_value()) return;
  STD_TORCH_CHECK(part->dim() == 3, name, " must have 3 dimensions, got ", part->dim());
  STD_TORCH_CHECK(part->size(0) == batch || part->size(0) == 1, name, " must have a batch of ", batch, " or 1, got ",
                  part->size(0));
  STD_TORCH_CHECK(part->size(1) == rows && part->size(2) == columns, name, " must be (B, ", rows, ", ", columns,
                  "), got (B, ", part->size(1), ", ", part->size(2), ")");
  with_dtype(part->scalar_type(), name, [](auto) {});
}

void check_pair(const std::vector<int64_t>& pair, const char* name) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] > 0 && pair[1] > 0, name, " must be two positive sizes");
}

WalkProblem sizes_of(const Tensor& seeds, const std::vector<int64_t>& grid, bool is_dense) {
  STD_TORCH_CHECK(seeds.dim() == 3, "seeds must be (B, N, C), got ", seeds.dim(), " dimensions");
  WalkProblem problem = {};
  problem.batch = seeds.size(0);
  problem.num_labels = seeds.size(2);
  problem.height = seeds.size(1);
  problem.width = 1;
  problem.is_dense = is_dense;
  if (is_dense) return problem;
  check_pair(grid, "grid");
  STD_TORCH_CHECK(grid[0] * grid[1] == seeds.size(1), "grid must have the ", seeds.size(1), " tokens of seeds, got ",
                  grid[0], " x ", grid[1]);
  problem.height = grid[0];
  problem.width = grid[1];
  return problem;
}

}  // namespace

Tensor random_walk(Tensor seeds, OptionalTensor start, OptionalTensor values, OptionalTensor u, OptionalTensor v,
                   OptionalTensor dense, std::vector<int64_t> grid, std::vector<int64_t> window,
                   std::vector<int64_t> cells, double beta, double alpha, int64_t steps, bool normalize) {
  WalkProblem problem = sizes_of(seeds, grid, dense.has_value());
  with_dtype(seeds.scalar_type(), "seeds", [](auto) {});
  const int64_t num_tokens = problem.num_tokens();
  STD_TORCH_CHECK(steps >= 0, "steps must be 0 or more, got ", steps);
  STD_TORCH_CHECK(dense.has_value() != (values.has_value() || u.has_value() || v.has_value()),
                  "either dense or its parts (values, u, v) must be given");
  const bool as_double =
      is_double(seeds) || is_double(start) || is_double(values) || is_double(u) || is_double(v) || is_double(dense);
  const ScalarType number_dtype = as_double ? ScalarType::Double : ScalarType::Float;
  if (start.has_value()) {
    check_part(start, "start", problem.batch, num_tokens, problem.num_labels);
    STD_TORCH_CHECK(start->size(0) == problem.batch, "start must have the batch of seeds, ", problem.batch);
  }

  const bool has_global = u.has_value() || v.has_value();
  if (dense.has_value()) {
    check_part(dense, "dense", problem.batch, num_tokens, num_tokens);
    problem.rank = num_tokens;
    problem.left = MatrixBatch(*dense);
    problem.left_share = 1;
  } else if (has_global) {
    problem.rank = u.has_value() ? u->size(-1) : v->size(-1);
    check_part(u, "u", problem.batch, num_tokens, problem.rank);
    check_part(v, "v", problem.batch, num_tokens, problem.rank);
    if (!u.has_value() || !v.has_value()) {
      check_pair(cells, "cells");
      STD_TORCH_CHECK(cells[0] <= problem.height && cells[1] <= problem.width, "cells must be at most one per token");
      STD_TORCH_CHECK(cells[0] * cells[1] == problem.rank, "cells must be as many as the columns of ",
                      u.has_value() ? "u" : "v", ", ", problem.rank, ", got ", cells[0], " x ", cells[1]);
      problem.cells_high = cells[0];
      problem.cells_wide = cells[1];
    }
    if (v.has_value() && v->scalar_type() != number_dtype) v = torch::stable::to(*v, number_dtype);
    if (u.has_value()) problem.left = MatrixBatch(*u);
    if (v.has_value()) problem.right = MatrixBatch(*v).transposed();
    problem.left_share = values.has_value() ? beta : 1;
  }
  if (values.has_value()) {
    check_pair(window, "window");
    STD_TORCH_CHECK(window[0] % 2 == 1 && window[1] % 2 == 1, "window must be two odd sizes (kh, kw)");
    const int64_t size = window[0] * window[1];
    check_part(values, "values", problem.batch, num_tokens, size);
    if (values->scalar_type() != number_dtype && size > kWidenedWindow)
      values = torch::stable::to(*values, number_dtype);
    values = torch::stable::contiguous(*values);
    problem.window_height = window[0];
    problem.window_width = window[1];
    problem.values = MatrixBatch(*values);
    problem.local_share = has_global ? 1 - beta : 1;
  }

  Tensor out = torch::stable::new_empty(seeds, {problem.batch, num_tokens, problem.num_labels});
  if (out.numel() == 0) return out;
  with_number(as_double, [&](auto number) {
    Walk<decltype(number)> walk(problem, alpha, seeds);
    const MatrixBatch restart(seeds);
    walk.run(restart, start.has_value() ? MatrixBatch(*start) : restart, steps, normalize, out);
  });
  return out;
}

}  // namespace nerve_kernels::cpu
