// Row sums of U, T as a mean and a rounded deviation, and their products.

#include "bf16_global.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "matrix_product.h"

namespace nerve_kernels::cpu {
namespace {

constexpr int64_t kDepthAtOnce = 256;  // 24 KiB of the widest block of labels
constexpr int64_t kLabelsPerTask = 8;

float widen(uint16_t number) {
  const uint32_t bits = static_cast<uint32_t>(number) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// To the nearest bfloat16, ties to even; what is not a number stays so.
uint32_t narrow(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  if (number != number) return 0x7FC0;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

}  // namespace

bool Bf16Global::suits(const WalkProblem& problem) {
  return problem.global_u.present() && problem.global_u.dtype == ScalarType::BFloat16 &&
      problem.global_u.column_stride == 1 && problem.rank % 2 == 0 && best_kernels().bf16_product != nullptr;
}

int64_t Bf16Global::numbers_needed(const WalkProblem& problem, int64_t stride) {
  return problem.batch * (problem.num_tokens() + stride + problem.rank / 2 * stride);
}

Bf16Global::Bf16Global(const WalkProblem& problem, int64_t stride, float* storage)
    : u_(problem.global_u),
      batch_(problem.batch),
      num_tokens_(problem.num_tokens()),
      rank_(problem.rank),
      stride_(stride),
      multiply_(best_kernels().bf16_product),
      row_sums_(storage + batch_ * (rank_ / 2 * stride + stride)),
      mean_(storage + batch_ * (rank_ / 2 * stride)),
      deviation_(reinterpret_cast<uint32_t*>(storage)) {
  const int64_t images = u_.image_stride == 0 ? 1 : batch_;
  torch::stable::parallel_for(0, images * num_tokens_, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* from = u_row(row / num_tokens_, row % num_tokens_);
      float sums[16] = {}, total = 0;
      int64_t k = 0;
      for (; k + 16 <= rank_; k += 16)
        for (int64_t i = 0; i < 16; ++i) sums[i] += widen(from[k + i]);
      for (; k < rank_; ++k) sums[k % 16] += widen(from[k]);
      for (const float sum : sums) total += sum;
      row_sums_[row] = total;
    }
  });
}

void Bf16Global::set_pooled(const float* pooled) {
  const int64_t groups = stride_ / kLabelsPerTask;
  torch::stable::parallel_for(0, batch_ * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / groups, label = task % groups * kLabelsPerTask;
      const float* from = pooled + image * rank_ * stride_ + label;
      uint32_t* to = deviation_ + image * rank_ / 2 * stride_ + label;
      float mean[kLabelsPerTask] = {};
      for (int64_t k = 0; k < rank_; ++k)
        for (int64_t c = 0; c < kLabelsPerTask; ++c) mean[c] += from[k * stride_ + c];
      for (int64_t c = 0; c < kLabelsPerTask; ++c) {
        mean[c] /= static_cast<float>(rank_);
        mean_[image * stride_ + label + c] = mean[c];
      }
      for (int64_t k = 0; k < rank_; k += 2)
        for (int64_t c = 0; c < kLabelsPerTask; ++c)
          to[k / 2 * stride_ + c] =
              narrow(from[k * stride_ + c] - mean[c]) | narrow(from[(k + 1) * stride_ + c] - mean[c]) << 16;
    }
  });
}

void Bf16Global::add(int64_t image, int64_t first, int64_t count, float scale, float* out) const {
  const float* row_sums = row_sums_ + (u_.image_stride == 0 ? 0 : image) * num_tokens_ + first;
  const float* mean = mean_ + image * stride_;
  for (int64_t token = 0; token < count; ++token) {
    const float weight = scale * row_sums[token];
    for (int64_t c = 0; c < stride_; ++c) out[token * stride_ + c] += weight * mean[c];
  }
  for (int64_t row = 0; row < count; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, count - row);
    for (int64_t k = 0; k < rank_; k += kDepthAtOnce) {
      Bf16Product product = {};
      product.a = u_row(image, first + row) + k;
      product.a_row_stride = u_.row_stride;
      product.b = deviation_ + (image * rank_ + k) / 2 * stride_;
      product.out = out + row * stride_;
      product.stride = product.labels = stride_;
      product.rows = rows;
      product.depth = std::min(kDepthAtOnce, rank_ - k);
      product.scale = scale;
      const bool last = k + kDepthAtOnce >= rank_;
      if (!last || first + row + rows < num_tokens_)
        product.next = u_.at(image, first + row + (last ? rows : 0), last ? 0 : k + kDepthAtOnce);
      multiply_(product);
    }
  }
}

}  // namespace nerve_kernels::cpu
