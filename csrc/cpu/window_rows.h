#pragma once

// The interface between the op (tensors, dtypes, threads) and its inner kernel (one row of the grid, one number type),
// which is compiled once per instruction set.

#include <cstdint>

namespace nerve_kernels::cpu {

// Everything the kernel needs for one grid row y of one image.
template <typename Number>
struct WindowRow {
  const Number* values;  // (width, window_height*window_width): the window weights of this row's tokens
  const Number* labels;  // (height*width, stride): P of the whole image, rows padded with zeros up to `stride`
  Number* out;           // (width, stride): this row's result, padding included
  int64_t stride;        // labels per token, a multiple of label_quantum
  int64_t y, height, width;
  int64_t window_height, window_width;
};

template <typename Number>
using WindowRowFunction = void (*)(const WindowRow<Number>&);

// One compiled copy of the kernel. A row of P is padded to a multiple of `quantum_bytes`.
struct WindowRowKernels {
  const char* instruction_set;
  int64_t quantum_bytes;
  WindowRowFunction<float> float32;
  WindowRowFunction<double> float64;
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
