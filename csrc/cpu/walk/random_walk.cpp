// The walk on tensors: checks, and what S is made of.

#include "random_walk.h"

#include <torch/csrc/stable/ops.h>

#include "../allocation.h"
#include "../checks.h"
#include "walk_problem.h"
#include "walk_steps.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

bool is_double(const OptionalTensor& tensor) { return tensor.has_value() && cpu::is_double(*tensor); }

WalkProblem sizes_of(const Tensor& seeds, const std::vector<int64_t>& grid, bool is_dense) {
  STD_TORCH_CHECK(seeds.dim() == 3, "seeds: expected (B, N, C), got ", seeds.dim(), " dimensions");
  if (!is_dense) check_grid(grid, seeds.size(1), "seeds");
  return {.batch = seeds.size(0),
          .height = is_dense ? seeds.size(1) : grid[0],
          .width = is_dense ? 1 : grid[1],
          .num_labels = seeds.size(2)};
}

// `v` is replaced by what has to outlive the problem.
void set_global(WalkProblem& problem, const OptionalTensor& u, OptionalTensor& v, const std::vector<int64_t>& cells,
                bool as_double) {
  problem.rank = u.has_value() ? u->size(-1) : v->size(-1);
  if (u.has_value()) check_part(*u, "u", problem.batch, problem.num_tokens(), problem.rank);
  if (v.has_value()) check_part(*v, "v", problem.batch, problem.num_tokens(), problem.rank);
  if (!u.has_value() || !v.has_value()) {
    check_cells(cells, problem.height, problem.width);
    STD_TORCH_CHECK(cells[0] * cells[1] == problem.rank, "cells: expected as many as the columns of ",
                    u.has_value() ? "u" : "v", ", ", problem.rank, ", got ", cells[0], " x ", cells[1]);
    problem.cell_rows = cells[0];
    problem.cell_columns = cells[1];
  }
  if (u.has_value()) problem.global_u = MatrixBatch(*u);
  if (!v.has_value()) return;
  if (v->scalar_type() != number_dtype(as_double))
    v = torch::stable::to(*v, number_dtype(as_double));
  problem.global_v = MatrixBatch(*v).transposed();
}

}  // namespace

Tensor random_walk(Tensor seeds, OptionalTensor start, OptionalTensor values, OptionalTensor u, OptionalTensor v,
                   OptionalTensor dense, OptionalTensor row_pointers, OptionalTensor columns, std::vector<int64_t> grid,
                   std::vector<int64_t> window, std::vector<int64_t> cells, double beta, double alpha, int64_t steps, bool normalize) {
  WalkProblem problem = sizes_of(seeds, grid, dense.has_value());
  with_dtype(seeds.scalar_type(), "seeds", [](auto) {});
  const int64_t num_tokens = problem.num_tokens();
  const bool has_global = u.has_value() || v.has_value();
  STD_TORCH_CHECK(steps >= 0, "steps: expected 0 or more, got ", steps);
  STD_TORCH_CHECK(dense.has_value() != (values.has_value() || has_global),
                  "dense: expected either it or its parts (values, u, v)");
  if (start.has_value()) {
    check_part(*start, "start", problem.batch, num_tokens, problem.num_labels);
    STD_TORCH_CHECK(start->size(0) == problem.batch, "start: expected the batch of seeds, ", problem.batch, ", got ",
                    start->size(0));
  }
  const bool as_double = is_double(seeds) || is_double(start) || is_double(values) || is_double(u) || is_double(v) ||
      is_double(dense);
  if (dense.has_value()) {
    check_part(*dense, "dense", problem.batch, num_tokens, num_tokens);
    problem.dense = MatrixBatch(*dense);
  }
  if (has_global) set_global(problem, u, v, cells, as_double);
  STD_TORCH_CHECK(row_pointers.has_value() == columns.has_value() && (values.has_value() || !columns.has_value()),
                  "row_pointers, columns: expected both, with values, or neither");
  if (columns.has_value())
    set_graph(problem, *row_pointers, *columns, *values, as_double);
  else if (values.has_value())
    set_local(problem, *values, window, as_double);
  problem.global_share = values.has_value() ? beta : 1;
  problem.local_share = has_global ? 1 - beta : 1;

  Tensor out = allocate(seeds, {problem.batch, num_tokens, problem.num_labels});
  if (out.numel() == 0) return out;
  with_number(as_double, [&](auto number) {
    Walk<decltype(number)> walk(problem, alpha, seeds);
    const MatrixBatch restart(seeds);
    walk.run(restart, start.has_value() ? MatrixBatch(*start) : restart, steps, normalize, out);
  });
  return out;
}

}  // namespace nerve_kernels::cpu
