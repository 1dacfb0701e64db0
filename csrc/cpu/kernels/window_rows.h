#pragma once

// The interface between the op (tensors, dtypes, threads) and its inner kernel (one row of the grid, one number type),
// which is compiled once per instruction set.

#include <cstdint>

namespace nerve_kernels::cpu {

// Everything the kernel needs for one grid row y of one image, or some tokens of it.
template <typename Number>
struct WindowRow {
  const Number* values;  // (width, window_height*window_width): the window weights of this row's tokens
  const Number* labels;  // (height*width, stride): P of the whole image, rows padded with zeros up to `stride`
  Number* out;           // (width, stride): `scale` times this row's result is added to it, padding included
  Number scale;
  int64_t stride;        // labels per token, a multiple of kLabelQuantumBytes
  int64_t y, height, width;
  int64_t x_begin, x_end;  // the tokens to compute
  int64_t window_height, window_width;
};

// The gradient of a row's product for its window values: gradient[x, o] = left[y, x] . labels[(y, x) + o].
template <typename Number>
struct WindowGradientRow {
  const Number* left;    // (width, stride): the gradient that came to this row's result
  const Number* labels;  // (height*width, stride), as above
  Number* gradient;      // (width, window_height*window_width); what lies outside the grid is not written
  int64_t stride;
  int64_t y, height, width;
  int64_t window_height, window_width;
};

template <typename Number>
using WindowGradientFunction = void (*)(const WindowGradientRow<Number>&);

template <typename Number>
using WindowRowFunction = void (*)(const WindowRow<Number>&);

// Rows of P are padded with zeros to a multiple of this, whatever the instruction set.
constexpr int64_t kLabelQuantumBytes = 32;

// One compiled copy of the kernel.
struct WindowRowKernels {
  const char* instruction_set;
  WindowRowFunction<float> float32;
  WindowRowFunction<double> float64;
  WindowGradientFunction<float> gradient_float32;
  WindowGradientFunction<double> gradient_float64;

  template <typename Number>
  WindowRowFunction<Number> of() const {
    if constexpr (sizeof(Number) == sizeof(float)) return float32;
    else return float64;
  }
  template <typename Number>
  WindowGradientFunction<Number> gradient_of() const {
    if constexpr (sizeof(Number) == sizeof(float)) return gradient_float32;
    else return gradient_float64;
  }
};

// The best copy this processor runs, chosen once. Like torch's own kernels it obeys ATEN_CPU_CAPABILITY
// ("default", "avx2", "avx512"), which can only lower the choice.
const WindowRowKernels& best_window_row_kernels();

extern const WindowRowKernels window_rows_portable;
#if defined(__x86_64__)
extern const WindowRowKernels window_rows_avx2;
extern const WindowRowKernels window_rows_avx512;
#endif

}  // namespace nerve_kernels::cpu
