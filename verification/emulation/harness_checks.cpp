// harness_checks NAME SEED: small kernels that show what cuda_on_cpu.h does, right ones and wrong ones.

#include <string>

#include "cuda_on_cpu.h"

namespace {

constexpr int kThreads = 64, kBlocks = 3;

__global__ void sum_by_shuffles(int* sums) {
  int sum = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  sum = __shfl_sync(~0u, sum, 31);
  __syncwarp();
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Every thread reads what the same thread of the next block wrote, and its neighbour in shared memory.
__global__ void pass_around(int* from, int* to) {
  DYNAMIC_SHARED_MEMORY(memory);
  int* const shared = reinterpret_cast<int*>(memory);
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  from[block * kThreads + thread] = 1000 * block + thread;
  cooperative_groups::this_grid().sync();
  shared[thread] = __ldcg(from + (block + 1) % kBlocks * kThreads + thread);
  __syncthreads();
  to[block * kThreads + thread] = shared[(thread + 1) % kThreads];
}

// As pass_around, with a counter of the blocks in place of the barrier of the grid.
__global__ void count_and_pass_around(uint64_t* counter, int* from, int* to) {
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  from[block * kThreads + thread] = 1000 * block + thread;
  __syncthreads();
  if (thread == 0) {
    cuda::atomic_ref<uint64_t, cuda::thread_scope_device> arrived(*counter);
    arrived.fetch_add(1, cuda::memory_order_release);
    while (arrived.load(cuda::memory_order_acquire) < kBlocks) {
    }
  }
  __syncthreads();
  to[block * kThreads + thread] = __ldcg(from + (block + 1) % kBlocks * kThreads + (thread + 1) % kThreads);
}

// Waits for one more than there are.
__global__ void count_too_far(uint64_t* counter) {
  cuda::atomic_ref<uint64_t, cuda::thread_scope_device> arrived(*counter);
  if (threadIdx.x == 0) arrived.fetch_add(1, cuda::memory_order_release);
  while (arrived.load(cuda::memory_order_acquire) <= kBlocks) {
  }
}

__global__ void barrier_in_a_branch() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) __syncthreads();
}

__global__ void barrier_of_one_warp() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) cooperative_groups::this_grid().sync();
}

__global__ void grid_barrier_of_one_block() {
  if (blockIdx.x == 0) cooperative_groups::this_grid().sync();
}

__global__ void shuffle_with_a_lane_missing() {
  if (threadIdx.x % 32 != 7) __shfl_sync(~0u, 1, 0);
}

__global__ void shuffle_from_outside_the_mask() {
  if (threadIdx.x % 32 < 16) __shfl_sync(0xffffu, 1, 20);
}

int run(const std::string& name, uint64_t seed) {
  const auto launch = [&](auto kernel, auto... arguments) {
    cuda_on_cpu::launch(kernel, kBlocks, kThreads, kThreads * sizeof(int), seed, arguments...);
    return 0;
  };
  std::vector<int> first(kBlocks * kThreads, -1), second(kBlocks * kThreads, -1);
  if (name == "shuffles") {
    launch(sum_by_shuffles, first.data());
    for (int i = 0; i < kBlocks * kThreads; ++i)
      if (first[i] != 32 * (i / 32 * 32) + 31 * 16) return 1;
    return 0;
  }
  uint64_t counter = 0;
  if (name == "barriers" || name == "a counter") {
    if (name == "barriers") launch(pass_around, first.data(), second.data());
    if (name == "a counter") launch(count_and_pass_around, &counter, first.data(), second.data());
    for (int i = 0; i < kBlocks * kThreads; ++i)
      if (second[i] != (i / kThreads + 1) % kBlocks * 1000 + (i + 1) % kThreads) return 1;
    return 0;
  }
  if (name == "a counter that none raises") return launch(count_too_far, &counter);
  if (name == "barrier in a branch") return launch(barrier_in_a_branch);
  if (name == "barrier of one warp") return launch(barrier_of_one_warp);
  if (name == "grid barrier of one block") return launch(grid_barrier_of_one_block);
  if (name == "shuffle with a lane missing") return launch(shuffle_with_a_lane_missing);
  if (name == "shuffle from outside the mask") return launch(shuffle_from_outside_the_mask);
  return 2;
}

}  // namespace

int main(int count, char** arguments) { return count == 3 ? run(arguments[1], std::stoull(arguments[2])) : 2; }
