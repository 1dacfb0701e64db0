#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

// The attention ops. q is (B, heads, N, d), k (B, heads, N_k, d), lse (B, heads, N), w (B, heads), maps
// (B, heads, N, N_k); float32, float64, bfloat16 or float16 with any strides, lse in float32 or float64. Everything is
// computed in float32, in float64 where lse (or, where there is none, an input) is float64. No result depends on the
// number of threads. What each computes is said in src/nerve_kernels/_operators/attention/, in the file of the same name.
namespace nerve_kernels::cpu {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> attention_entropy(Tensor q, Tensor k, double scale);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_statistics(Tensor q, Tensor k, std::vector<int64_t> grid,
                                                                        std::vector<int64_t> window,
                                                                        std::vector<int64_t> cells, double scale,
                                                                        double sharpness, bool bfloat16);
// The pass over the scores that the gradients of all of these share; see _operators/attention/score_gradients.py.
std::tuple<Tensor, Tensor, Tensor> attention_gradient(Tensor q, Tensor k, Tensor lse, std::optional<Tensor> a,
                                                      std::optional<Tensor> b, std::optional<Tensor> cell_lse,
                                                      std::optional<Tensor> c, std::optional<Tensor> local,
                                                      std::optional<Tensor> pooled, std::vector<int64_t> grid,
                                                      std::vector<int64_t> window, std::vector<int64_t> cells,
                                                      double scale, double sharpness);
Tensor attention_marginal(Tensor q, Tensor k, Tensor lse, double scale);
Tensor attention_map_entropy(Tensor maps);
Tensor fuse_attention(Tensor q, Tensor k, Tensor w, Tensor lse, double scale);
Tensor fuse_attention_maps(Tensor maps, Tensor w, bool widen);
// dA of every head and dw; grad is (B, 1, N, N_k).
std::tuple<Tensor, Tensor> fuse_attention_maps_backward(Tensor grad, Tensor maps, Tensor w);
Tensor local_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, std::vector<int64_t> grid, std::vector<int64_t> window,
                      double scale, bool normalize);
// Its gradients for q, k, w and lse.
std::tuple<Tensor, Tensor, Tensor, Tensor> local_gradient(Tensor grad, Tensor q, Tensor k, Tensor w, Tensor lse,
                                                          std::vector<int64_t> grid, std::vector<int64_t> window,
                                                          double scale, bool normalize);
Tensor cliper(Tensor q, Tensor k, Tensor seeds, double scale, double threshold);
Tensor global_affinity(Tensor q, Tensor k, Tensor w, Tensor lse, std::vector<int64_t> grid, std::vector<int64_t> cells,
                       double scale);

}  // namespace nerve_kernels::cpu
