// Registration only: which C++ function stands behind which private op.
//
// The schemas live in Python (src/nerve_kernels/_operators/), so every op exists, with its fake and its gradient, in an
// install without this file. What is registered here must match them:
//
//   nerve_kernels::_window_product_cpp(Tensor values, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor
//   nerve_kernels::_window_gradient_cpp(Tensor left, Tensor p, SymInt[] grid, SymInt[] window) -> Tensor
//   nerve_kernels::_attention_entropy_cpp(Tensor q, Tensor k, float scale) -> (Tensor, Tensor)
//   nerve_kernels::_attention_marginal_cpp(Tensor q, Tensor k, Tensor lse, float scale) -> Tensor
//   nerve_kernels::_attention_map_entropy_cpp(Tensor maps) -> Tensor
//   nerve_kernels::_fuse_attention_cpp(Tensor q, Tensor k, Tensor w, Tensor lse, float scale) -> Tensor
//   nerve_kernels::_attention_statistics_cpp(Tensor q, Tensor k, SymInt[] grid, SymInt[] window, SymInt[] cells,
//                                            float scale, float sharpness, bool bfloat16)
//                                            -> (Tensor, Tensor, Tensor, Tensor, Tensor)
//   nerve_kernels::_fuse_attention_maps_cpp(Tensor maps, Tensor w, bool widen) -> Tensor
//   nerve_kernels::_fuse_attention_maps_backward_cpp(Tensor grad, Tensor maps, Tensor w) -> (Tensor, Tensor)
//   nerve_kernels::_local_affinity_cpp(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] window,
//                                      float scale, bool normalize) -> Tensor
//   nerve_kernels::_global_affinity_cpp(Tensor q, Tensor k, Tensor w, Tensor lse, SymInt[] grid, SymInt[] cells,
//                                       float scale) -> Tensor
//   nerve_kernels::_cliper_cpp(Tensor q, Tensor k, Tensor seeds, float scale, float threshold) -> Tensor
//   nerve_kernels::_random_walk_cpp(Tensor seeds, Tensor? start, Tensor? values, Tensor? u, Tensor? v, Tensor? dense,
//                                   Tensor? row_pointers, Tensor? columns, SymInt[] grid, SymInt[] window,
//                                   SymInt[] cells, float beta, float alpha, SymInt steps, bool normalize) -> Tensor
//   nerve_kernels::_nearest_columns_cpp(Tensor products, SymInt k) -> Tensor
//   nerve_kernels::_add_transpose_cpp(Tensor columns, Tensor weights) -> (Tensor, Tensor, Tensor)
//   nerve_kernels::_sampled_product_cpp(Tensor left, Tensor p, Tensor row_pointers, Tensor columns) -> Tensor
//   nerve_kernels::_stencil_walk_cpp(Tensor seeds, Tensor? start, Tensor values, SymInt[] grid, SymInt[] offsets,
//                                    bool clamp, float alpha, SymInt steps, bool normalize) -> Tensor
//   nerve_kernels::_stencil_solve_cpp(Tensor right, Tensor values, SymInt[] grid, SymInt[] offsets, bool clamp,
//                                     float alpha, SymInt iterations, float tolerance) -> Tensor
//   nerve_kernels::_pixel_affinity_cpp(Tensor pixels, SymInt[] grid, SymInt[] offsets, bool clamp, int kind, int centres,
//                                      float scale, float decay, int normalize, bool bfloat16) -> Tensor
//   nerve_kernels::_best_labels_cpp(Tensor tokens, SymInt height, SymInt width, float threshold, int fallback) -> Tensor

#include <torch/csrc/stable/library.h>

#include "cpu/attention/attention.h"
#include "cpu/pixels/best_labels.h"
#include "cpu/pixels/pixel_affinity.h"
#include "cpu/pixels/stencil_solve.h"
#include "cpu/pixels/stencil_walk.h"
#include "cpu/walk/nearest_neighbours.h"
#include "cpu/walk/random_walk.h"
#include "cpu/walk/sampled_product.h"
#include "cpu/walk/window_product.h"

STABLE_TORCH_LIBRARY_IMPL(nerve_kernels, CPU, m) {
  m.impl("_window_product_cpp", TORCH_BOX(&nerve_kernels::cpu::window_product));
  m.impl("_window_gradient_cpp", TORCH_BOX(&nerve_kernels::cpu::window_gradient));
  m.impl("_attention_entropy_cpp", TORCH_BOX(&nerve_kernels::cpu::attention_entropy));
  m.impl("_attention_statistics_cpp", TORCH_BOX(&nerve_kernels::cpu::attention_statistics));
  m.impl("_attention_gradient_cpp", TORCH_BOX(&nerve_kernels::cpu::attention_gradient));
  m.impl("_attention_marginal_cpp", TORCH_BOX(&nerve_kernels::cpu::attention_marginal));
  m.impl("_attention_map_entropy_cpp", TORCH_BOX(&nerve_kernels::cpu::attention_map_entropy));
  m.impl("_fuse_attention_cpp", TORCH_BOX(&nerve_kernels::cpu::fuse_attention));
  m.impl("_fuse_attention_maps_cpp", TORCH_BOX(&nerve_kernels::cpu::fuse_attention_maps));
  m.impl("_fuse_attention_maps_backward_cpp", TORCH_BOX(&nerve_kernels::cpu::fuse_attention_maps_backward));
  m.impl("_local_affinity_cpp", TORCH_BOX(&nerve_kernels::cpu::local_affinity));
  m.impl("_local_gradient_cpp", TORCH_BOX(&nerve_kernels::cpu::local_gradient));
  m.impl("_global_affinity_cpp", TORCH_BOX(&nerve_kernels::cpu::global_affinity));
  m.impl("_cliper_cpp", TORCH_BOX(&nerve_kernels::cpu::cliper));
  m.impl("_random_walk_cpp", TORCH_BOX(&nerve_kernels::cpu::random_walk));
  m.impl("_nearest_columns_cpp", TORCH_BOX(&nerve_kernels::cpu::nearest_columns));
  m.impl("_add_transpose_cpp", TORCH_BOX(&nerve_kernels::cpu::add_transpose));
  m.impl("_sampled_product_cpp", TORCH_BOX(&nerve_kernels::cpu::sampled_product));
  m.impl("_stencil_walk_cpp", TORCH_BOX(&nerve_kernels::cpu::stencil_walk));
  m.impl("_stencil_solve_cpp", TORCH_BOX(&nerve_kernels::cpu::stencil_solve));
  m.impl("_pixel_affinity_cpp", TORCH_BOX(&nerve_kernels::cpu::pixel_affinity));
  m.impl("_best_labels_cpp", TORCH_BOX(&nerve_kernels::cpu::best_labels));
}
