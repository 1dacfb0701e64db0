#pragma once

// U T where U is stored in bfloat16 and the processor multiplies such numbers itself.

#include <cstdint>

#include "../kernels/kernels.h"
#include "walk_problem.h"

namespace nerve_kernels::cpu {

// T is split into its mean over the rank, which stays in float32, and the deviation from it, which is rounded to
// bfloat16: U T = (row sums of U) * mean + U * deviation. What is constant over the picture is thus exact, and
// rounding costs a part in 512 of what is not, as rounding U did.
class Bf16Global {
 public:
  static bool suits(const WalkProblem& problem);

  // How many floats it needs in `storage`.
  static int64_t numbers_needed(const WalkProblem& problem, int64_t stride);
  Bf16Global(const WalkProblem& problem, int64_t stride, float* storage);

  // Reads T (batch, rank, stride), once a step.
  void set_pooled(const float* pooled);
  // out[token] += scale * (U T)[first + token]
  void add(int64_t image, int64_t first, int64_t count, float scale, float* out) const;

 private:
  const uint16_t* u_row(int64_t image, int64_t row) const {
    return reinterpret_cast<const uint16_t*>(u_.at(image, row, 0));
  }

  MatrixBatch u_;
  int64_t batch_, num_tokens_, rank_, stride_;
  void (*multiply_)(const Bf16Product&);
  float* row_sums_;      // (batch or 1, N)
  float* mean_;          // (batch, stride)
  uint32_t* deviation_;  // (batch, rank / 2, stride)
};

}  // namespace nerve_kernels::cpu
