// Tokens with their labels side by side to planes of labels.

#include "planes.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../allocation.h"
#include "../checks.h"

namespace nerve_kernels::cpu {

using torch::stable::Tensor;

template <typename Number>
Planes<Number>::Planes(const Tensor& like, const Stencil& stencil, const PlaneLayout& layout, int64_t labels)
    : stencil_(&stencil), layout_(&layout) {
  constexpr int64_t kLine = 64 / sizeof(Number);
  storage_ = allocate(like, {labels * layout.plane + kLine}, dtype_of<Number>);
  const auto address = reinterpret_cast<uintptr_t>(storage_.mutable_data_ptr());
  data_ = reinterpret_cast<Number*>(round_up(static_cast<int64_t>(address), 64));
}

template <typename Number>
void Planes<Number>::load(const MatrixBatch& from, int64_t image, int64_t first_label, int64_t labels, Number factor) {
  const int64_t width = stencil_->width, step = from.row_stride;
  torch::stable::parallel_for(0, stencil_->height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t label = 0; label < labels; ++label) {
        Number* row = data_ + label * layout_->plane + layout_->at(y, 0);
        with_dtype(from.dtype, "labels", [&](auto stored) {
          const auto* tokens = reinterpret_cast<const decltype(stored)*>(from.at(image, y * width, first_label + label));
          for (int64_t x = 0; x < width; ++x) row[x] = static_cast<Number>(tokens[x * step]) * factor;
        });
      }
      fill_left(y, 1, labels);
      fill_right(y, 1, labels);
    }
  });
}

template <typename Number>
void Planes<Number>::store(int64_t labels, Number* tokens, int64_t stride) const {
  constexpr int64_t kTokens = 16;  // a line of each plane at a time
  torch::stable::parallel_for(0, stencil_->height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t first = 0; first < stencil_->width; first += kTokens) {
        const int64_t count = std::min(kTokens, stencil_->width - first);
        const Number* from = data_ + layout_->at(y, first);
        Number* to = tokens + (y * stencil_->width + first) * stride;
        for (int64_t label = 0; label < labels; ++label)
          for (int64_t x = 0; x < count; ++x) to[x * stride + label] = from[label * layout_->plane + x];
      }
    }
  });
}

template <typename Number>
template <typename Fill>
void Planes<Number>::for_rows(int64_t y, int64_t rows, int64_t labels, const Fill& fill) {
  for (int64_t label = 0; label < labels; ++label)
    for (int64_t row = y; row < y + rows; ++row) fill(data_ + label * layout_->plane + layout_->at(row, 0));
}

template <typename Number>
void Planes<Number>::fill_left(int64_t y, int64_t rows, int64_t labels) {
  for_rows(y, rows, labels,
           [&](Number* first) { std::fill(first - layout_->left, first, stencil_->clamp ? *first : Number(0)); });
}

template <typename Number>
void Planes<Number>::fill_right(int64_t y, int64_t rows, int64_t labels) {
  const int64_t width = stencil_->width, end = layout_->pitch - layout_->left;
  for_rows(y, rows, labels, [&](Number* first) {
    std::fill(first + width, first + end, stencil_->clamp ? first[width - 1] : Number(0));
  });
}

template class Planes<float>;
template class Planes<double>;

}  // namespace nerve_kernels::cpu
