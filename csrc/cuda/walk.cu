// The persistent walk on tensors: checks, buffers and the cooperative launch. Which way a walk is laid over the GPU is
// decided in Python (src/nerve_kernels/_cuda/walk_plan.py), from what the driver says here of the blocks it can hold.
//
// The schemas live in Python too; what is registered at the end must match them:
//
//   nerve_kernels::_random_walk_cuda(Tensor seeds, Tensor? values, Tensor? u, SymInt[] grid, SymInt[] window,
//       SymInt[] cells, float beta, float alpha, SymInt steps, bool normalize, SymInt[] plan) -> Tensor
//   nerve_kernels::_random_walk_cuda_shared_bytes(Tensor like) -> SymInt
//   nerve_kernels::_random_walk_cuda_resident_blocks(Tensor like, SymInt labels_per_lane, SymInt shared_bytes) -> SymInt

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <bit>
#include <optional>
#include <vector>

#include "walk.cuh"

namespace nerve_kernels::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

Number number_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Number::kFloat32;
    case ScalarType::Half: return Number::kFloat16;
    case ScalarType::BFloat16: return Number::kBFloat16;
    default: STD_TORCH_CHECK(false, name, " must be float32, float16 or bfloat16");
  }
}

const void* kernel_of(int64_t labels_per_lane) {
  switch (labels_per_lane) {
    case 2: return reinterpret_cast<const void*>(&random_walk_kernel<2>);
    case 4: return reinterpret_cast<const void*>(&random_walk_kernel<4>);
    case 6: return reinterpret_cast<const void*>(&random_walk_kernel<6>);
    case 8: return reinterpret_cast<const void*>(&random_walk_kernel<8>);
    default: STD_TORCH_CHECK(false, "labels_per_lane must be 2, 4, 6 or 8, got ", labels_per_lane);
  }
}

void allow_shared_memory(const void* kernel, int64_t bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "shared memory of the persistent walk");
}

// The most shared memory that a block can have on this device.
int64_t shared_bytes_per_block(Tensor like) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, like.get_device_index()),
             "shared memory of the device");
  return bytes;
}

// How many blocks of the kernel each multiprocessor of this device holds at once.
int64_t resident_blocks(Tensor like, int64_t labels_per_lane, int64_t shared_bytes) {
  const DeviceGuard guard(like.get_device_index());
  const void* kernel = kernel_of(labels_per_lane);
  allow_shared_memory(kernel, shared_bytes);
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared_bytes),
             "occupancy of the persistent walk");
  return blocks;
}

// values or u: (batch or 1, N, columns), contiguous.
const void* matrix_of(const Tensor& matrix, const char* name, const Walk& walk, int64_t columns) {
  STD_TORCH_CHECK(matrix.dim() == 3 && (matrix.size(0) == 1 || matrix.size(0) == walk.batch) &&
                      matrix.size(1) == walk.num_tokens() && matrix.size(2) == columns && matrix.is_contiguous(),
                  name, " must be contiguous (B or 1, N, ", columns, ")");
  return matrix.const_data_ptr();
}

Tensor random_walk(Tensor seeds, std::optional<Tensor> values, std::optional<Tensor> u, std::vector<int64_t> grid,
                   std::vector<int64_t> window, std::vector<int64_t> cells, double beta, double alpha, int64_t steps,
                   bool normalize, std::vector<int64_t> plan) {
  STD_TORCH_CHECK(grid.size() == 2 && window.size() == 2 && cells.size() == 2 && plan.size() == 6,
                  "grid, window and cells must be pairs, plan six numbers");
  STD_TORCH_CHECK(values || u, "the walk needs window values, u or both");
  STD_TORCH_CHECK(seeds.dim() == 3 && seeds.size(1) == grid[0] * grid[1] && seeds.is_contiguous(),
                  "seeds must be contiguous (B, N, C) on the grid");
  const DeviceGuard guard(seeds.get_device_index());
  Walk walk = {};
  walk.batch = static_cast<int>(seeds.size(0)), walk.labels = static_cast<int>(seeds.size(2));
  walk.height = static_cast<int>(grid[0]), walk.width = static_cast<int>(grid[1]);
  walk.steps = steps, walk.normalize = normalize;
  walk.restart_share = static_cast<float>(1 - alpha);
  walk.seeds = seeds.const_data_ptr(), walk.seeds_number = number_of(seeds, "seeds");
  if (values) {
    walk.window_height = static_cast<int>(window[0]), walk.window_width = static_cast<int>(window[1]);
    walk.values = matrix_of(*values, "values", walk, walk.window_size());
    walk.values_number = number_of(*values, "values"), walk.values_shared = values->size(0) == 1;
    walk.local_share = static_cast<float>(u ? alpha * (1 - beta) : alpha);
  }
  if (u) {
    walk.cell_rows = static_cast<int>(cells[0]), walk.cell_columns = static_cast<int>(cells[1]);
    walk.u = matrix_of(*u, "u", walk, walk.num_cells());
    walk.u_number = number_of(*u, "u"), walk.u_shared = u->size(0) == 1;
    walk.global_share = static_cast<float>(values ? alpha * beta : alpha);
  }
  const int labels_per_lane = static_cast<int>(plan[0]), part_labels = kLabelLanes * labels_per_lane;
  walk.label_parts = (walk.labels + part_labels - 1) / part_labels;
  STD_TORCH_CHECK(std::has_single_bit(static_cast<uint64_t>(plan[1])) &&
                      std::has_single_bit(static_cast<uint64_t>(plan[2])) && plan[2] >= kTokensPerLane &&
                      plan[1] * plan[2] >= kTokensPerWarp && plan[1] * plan[2] <= kThreads,
                  "a tile must have sides that are powers of two and 32 to 256 tokens");
  walk.tile_height_bits = std::countr_zero(static_cast<uint64_t>(plan[1]));
  walk.tile_width_bits = std::countr_zero(static_cast<uint64_t>(plan[2]));
  walk.cells_per_chunk = static_cast<int>(plan[3]), walk.u_resident = plan[4] != 0;
  STD_TORCH_CHECK(!u || walk.cells_per_chunk > 0, "cells_per_chunk must be positive");
  walk.teams = static_cast<int>(plan[5]);
  STD_TORCH_CHECK(walk.teams > 0, "teams must be positive");
  STD_TORCH_CHECK(int64_t{walk.batch} * walk.label_parts < int64_t{1} << 30, "too many images and ranges of labels");

  Tensor result = torch::stable::new_empty(seeds, {walk.batch, walk.num_tokens(), walk.labels});
  if (result.numel() == 0) return result;
  walk.result = result.mutable_data_ptr();
  const auto buffer = [&](int64_t floats) { return torch::stable::new_empty(seeds, {floats}, ScalarType::Float); };
  const int64_t both = int64_t{2} * walk.teams * part_labels;
  const Tensor published = buffer(values ? both * walk.num_tokens() : 0);
  const Tensor pieces = buffer(u ? both * walk.num_slots() : 0);
  const Tensor arrivals = buffer(int64_t{walk.teams} * kArrivals);  // numbers as wide as a float
  const bool in_the_end = walk.divided_at_the_end(), in_place = walk.seeds_number == Number::kFloat32;
  const Tensor undivided = in_place ? result : buffer(in_the_end ? result.numel() : 0);
  const Tensor row_sums = buffer(in_the_end ? walk.num_parts() * walk.num_tokens() : 0);
  walk.published = static_cast<float*>(published.mutable_data_ptr());
  walk.pieces = static_cast<float*>(pieces.mutable_data_ptr());
  walk.arrivals = static_cast<uint32_t*>(arrivals.mutable_data_ptr());
  walk.undivided = static_cast<float*>(undivided.mutable_data_ptr());
  walk.row_sums = static_cast<float*>(row_sums.mutable_data_ptr());

  const void* kernel = kernel_of(labels_per_lane);
  const int64_t shared_bytes = int64_t{sizeof(float)} * SharedLayout(walk, labels_per_lane).total;
  allow_shared_memory(kernel, shared_bytes);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(seeds.get_device_index(), &stream));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemsetAsync(walk.arrivals, 0, sizeof(uint32_t) * walk.teams * kArrivals, cuda_stream),
             "counters of the persistent walk");
  void* arguments[] = {&walk};
  check_cuda(cudaLaunchCooperativeKernel(kernel, dim3(walk.num_blocks()), dim3(kThreads), arguments, shared_bytes,
                                         cuda_stream),
             "launch of the persistent walk");
  return result;
}

}  // namespace
}  // namespace nerve_kernels::cuda

STABLE_TORCH_LIBRARY_IMPL(nerve_kernels, CUDA, m) {
  m.impl("_random_walk_cuda", TORCH_BOX(&nerve_kernels::cuda::random_walk));
  m.impl("_random_walk_cuda_shared_bytes", TORCH_BOX(&nerve_kernels::cuda::shared_bytes_per_block));
  m.impl("_random_walk_cuda_resident_blocks", TORCH_BOX(&nerve_kernels::cuda::resident_blocks));
}
