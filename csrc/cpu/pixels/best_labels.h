#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace nerve_kernels::cpu {

// argmax over labels of probabilities brought from tokens to pixels bilinearly (half-pixel centres, clamped borders):
//   tokens   (B, h, w, C) float32 or float64, labels side by side
//   returns  (B, height, width) int64: the first of the best labels; `fallback` where the best is below `threshold`.
// A value that is not a number is never the best. No array of labels by pixels is made.
torch::stable::Tensor best_labels(
    torch::stable::Tensor tokens, int64_t height, int64_t width, double threshold, int64_t fallback);

}  // namespace nerve_kernels::cpu
