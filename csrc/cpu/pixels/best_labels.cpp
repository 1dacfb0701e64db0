// Labels of pixels on tensors: checks and threads around the inner loop of kernels/best_labels.h.

#include "best_labels.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../allocation.h"
#include "../dtypes.h"
#include "../kernels/kernels.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

// Rows of pixels that one task takes at most: few enough to share out, enough for what is found out between two rows
// of tokens to pay.
constexpr int64_t kMaxRows = 32;

template <typename Number>
struct SideStorage {
  SideStorage(int64_t tokens, int64_t pixels)
      : first(pixels), second(pixels), first_weight(pixels + kWeightPadding), second_weight(pixels + kWeightPadding),
        side{tokens, pixels, first.data(), second.data(), first_weight.data(), second_weight.data()} {}
  std::vector<int64_t> first, second;
  std::vector<Number> first_weight, second_weight;
  BilinearSide<Number> side;
};

template <typename Number>
void find_all(const Tensor& tokens, double threshold, int64_t fallback, Tensor& out) {
  const KernelsOf<Number>& kernels = best_kernels_of<Number>();
  const int64_t height = out.size(1), width = out.size(2), labels = tokens.size(3);
  const int64_t image_tokens = tokens.size(1) * tokens.size(2) * labels;
  const SideStorage<Number> rows(tokens.size(1), height), columns(tokens.size(2), width);
  kernels.bilinear_side(rows.side);
  kernels.bilinear_side(columns.side);
  std::vector<int64_t> begins;  // of groups of rows that lie between the same two rows of tokens
  for (int64_t row = 0; row < height; ++row)
    if (begins.empty() || rows.first[row] != rows.first[begins.back()] || row - begins.back() == kMaxRows)
      begins.push_back(row);
  const int64_t groups = static_cast<int64_t>(begins.size());
  begins.push_back(height);

  const auto* data = static_cast<const Number*>(tokens.const_data_ptr());
  auto* result = static_cast<int64_t*>(out.mutable_data_ptr());
  for_each_task(tokens.size(0) * groups, [&](auto next) {
    std::vector<Number> upper(labels), lower(labels), corners(4 * labels);
    std::vector<int64_t> candidates(labels);
    for (int64_t task; next(task);) {
      const int64_t image = task / groups, group = task % groups;
      kernels.best_labels({data + image * image_tokens, labels, rows.side, columns.side, begins[group], begins[group + 1],
                    static_cast<Number>(threshold), fallback, result + image * height * width, upper.data(),
                    lower.data(), corners.data(), candidates.data()});
    }
  });
}

}  // namespace

Tensor best_labels(Tensor tokens, int64_t height, int64_t width, double threshold, int64_t fallback) {
  STD_TORCH_CHECK(tokens.dim() == 4, "tokens: expected (B, h, w, C), got ", tokens.dim(), " dimensions");
  const bool is_double = tokens.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(is_double || tokens.scalar_type() == ScalarType::Float, "tokens: expected float32 or float64, got ",
                  tokens.scalar_type());
  STD_TORCH_CHECK(tokens.size(1) > 0 && tokens.size(2) > 0 && tokens.size(3) > 0,
                  "tokens: expected at least one row, column and label, got ", tokens.size(1), " x ", tokens.size(2),
                  " x ", tokens.size(3));
  STD_TORCH_CHECK(height >= 0 && width >= 0, "height, width: expected >= 0, got ", height, " and ", width);
  STD_TORCH_CHECK(tokens.size(3) <= INT32_MAX && fallback >= INT32_MIN && fallback <= INT32_MAX,
                  "fallback: expected 32 bits, as the index of a label has, got ", fallback);
  tokens = torch::stable::contiguous(tokens);
  Tensor out = allocate(tokens, {tokens.size(0), height, width}, ScalarType::Long);
  if (out.numel() == 0) return out;
  with_number(is_double, [&](auto number) { find_all<decltype(number)>(tokens, threshold, fallback, out); });
  return out;
}

}  // namespace nerve_kernels::cpu
