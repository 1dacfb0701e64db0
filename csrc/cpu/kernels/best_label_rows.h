#pragma once

// The interface between best_labels (tensors, threads) and its inner loop, which is compiled once per instruction set.

#include <cstdint>

namespace nerve_kernels::cpu {

// One side of an image: pixel i lies between the tokens first[i] and second[i]. Weights are followed by room for a
// vector, so that whole vectors may be read at any pixel.
template <typename Number>
struct BilinearSide {
  int64_t tokens, pixels;
  int64_t *first, *second;
  Number *first_weight, *second_weight;
};

// Some rows of pixels of one image, all of them between the same two rows of tokens.
template <typename Number>
struct BestLabelRows {
  const Number* tokens;  // (h, w, labels)
  int64_t labels;
  BilinearSide<Number> rows, columns;
  int64_t row_begin, row_end;
  Number threshold;
  int64_t fallback;
  int64_t* out;  // (height, width)
  // for the kernel to write to
  Number* upper;        // (labels): bounds of each label's values between four tokens
  Number* lower;        // (labels)
  Number* corners;      // (labels, 4): values at the four tokens of the labels that may be the best between them
  int64_t* candidates;  // (labels): which ones these are
};

constexpr int64_t kWidestVector = 16;  // numbers in the widest vector of any instruction set

template <typename Number>
struct BestLabelFunctions {
  void (*bilinear_side)(const BilinearSide<Number>&);
  void (*find)(const BestLabelRows<Number>&);
};

// Of the best instruction set that this processor has.
template <typename Number>
const BestLabelFunctions<Number>& best_label_functions();

}  // namespace nerve_kernels::cpu
