#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

// Weights of each pixel's neighbours from colours, in one pass over the image:
//   pixels     (B, N, channels), any strides
//   offsets    2 K numbers (dy, dx)
//   clamp      a neighbour outside the grid is the nearest pixel inside; else its weight is 0
//   kind       a PixelKind: 0 contrast as PAMR has it, 1 e^(-distance / scale), 2 e^(-distance^2 / scale); the latter two
//              times e^(-decay * (dy^2 + dx^2))
//   centres    how often the pixel itself is among the samples of PAMR's deviation
//   normalize  0 not, 1 rows to sum 1, 2 D^-1/2 W D^-1/2; a row of zeros stays so
//   returns    (B, K, N) float32, float64 where pixels are, or bfloat16.
torch::stable::Tensor pixel_affinity(
    torch::stable::Tensor pixels, std::vector<int64_t> grid, std::vector<int64_t> offsets, bool clamp, int64_t kind,
    int64_t centres, double scale, double decay, int64_t normalize, bool bfloat16);

}  // namespace nerve_kernels::cpu
