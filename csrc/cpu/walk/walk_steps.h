#pragma once

// One walk in one number type: the buffers and the passes of a step.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "bf16_global.h"
#include "walk_problem.h"

namespace nerve_kernels::cpu {

template <typename Number>
class Walk {
 public:
  // `like` says where to allocate. Two buffers of P, and T: all that is ever allocated.
  Walk(const WalkProblem& problem, double alpha, const torch::stable::Tensor& like);

  // `steps` steps from `start`, the result in the dtype of `out`, which is contiguous.
  void run(const MatrixBatch& seeds, const MatrixBatch& start, int64_t steps, bool normalize,
           torch::stable::Tensor& out);

 private:
  Number* p_of(int64_t which, int64_t image) const { return p_[which] + image * problem_.num_tokens() * stride_; }
  Number* pooled_of(int64_t which, int64_t image) const { return pooled_[which] + image * problem_.rank * stride_; }

  void pool(int64_t which);  // T = V^T P, where no band can do it
  void average_cell(const Number* labels, int64_t row, int64_t column, Number* out) const;
  void step_band(const Band& band, int64_t image, int64_t from, const MatrixBatch& seeds) const;
  void add_global(int64_t image, int64_t first, int64_t count, int64_t from, Number* out) const;

  WalkProblem problem_;
  Number alpha_;
  int64_t stride_;  // labels of a token, padding included
  bool whole_cells_ = false;
  std::vector<Band> bands_;
  int64_t chunks_ = 1;  // of tokens, whose products with V^T are summed apart and then added in order
  torch::stable::Tensor storage_;
  Number* p_[2];
  Number* pooled_[2];
  std::optional<Bf16Global> bf16_global_;
};

}  // namespace nerve_kernels::cpu
