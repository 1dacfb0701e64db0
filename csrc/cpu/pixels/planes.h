#pragma once

// Planes of labels, each padded as a PlaneLayout says.

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../walk/walk_problem.h"
#include "stencil.h"

namespace nerve_kernels::cpu {

template <typename Number>
class Planes {
 public:
  Planes() = default;
  Planes(const torch::stable::Tensor& like, const Stencil& stencil, const PlaneLayout& layout, int64_t labels);

  Number* data() const { return data_; }
  // The tokens of some labels of one image, times `factor`, with what lies outside the grid.
  void load(const MatrixBatch& from, int64_t image, int64_t first_label, int64_t labels, Number factor);
  // The tokens of one image with their labels side by side, `stride` apart.
  void store(int64_t labels, Number* tokens, int64_t stride) const;
  // What lies outside the grid beside some rows of tokens: zeros, or the row's first or last token again.
  void fill_left(int64_t y, int64_t rows, int64_t labels);
  void fill_right(int64_t y, int64_t rows, int64_t labels);

 private:
  // Calls `fill(first)` with the first token of each row.
  template <typename Fill>
  void for_rows(int64_t y, int64_t rows, int64_t labels, const Fill& fill);

  const Stencil* stencil_ = nullptr;
  const PlaneLayout* layout_ = nullptr;
  torch::stable::Tensor storage_;
  Number* data_ = nullptr;
};

}  // namespace nerve_kernels::cpu
