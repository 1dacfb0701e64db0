// Registration only: which C++ function stands behind which private op.
//
// The schemas live in Python (src/nerve_kernels/_ops/*.py), so every op exists, with its fake and its gradient, in an
// install without this file. What is registered here must match them:
//
//   nerve_kernels::_window_product_cpp(Tensor values, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor

#include <torch/csrc/stable/library.h>

#include "cpu/window_product.h"

STABLE_TORCH_LIBRARY_IMPL(nerve_kernels, CPU, m) {
  m.impl("_window_product_cpp", TORCH_BOX(&nerve_kernels::cpu::window_product));
}
