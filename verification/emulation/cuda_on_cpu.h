// CUDA C++ kernels on the CPU: include this instead of CUDA's headers, compile with g++ and launch.
//
// Each block is an OS thread and each CUDA thread a fibre of it. Only one fibre runs at a time, from one barrier to the
// next, and a seed decides which: among the threads of a block each time one stops, and among the blocks, so that a run
// is repeated exactly by its seed. Under an even seed a block runs until it waits for others, and so gets as far ahead of
// them as it can; under an odd one another block may go on at any time. A missing barrier shows as a wrong result,
// because in some schedule a thread reads before another has written; shared memory starts as NaN. What ends the program
// with a message and exit code 3: a barrier that not all threads of a block reach, two different barriers met in one
// phase, a grid barrier that not all blocks reach, an atomic number on which all blocks wait that are left, and a warp
// function whose mask names other lanes than those that call it.
//
// With -fsanitize=thread every fibre is known to ThreadSanitizer as a thread, and only barriers order them: the
// scheduler itself is hidden from it, so two threads that touch the same memory without a barrier between are reported
// with both lines, whether or not the result came out wrong. With -fsanitize=address the stacks and shared memory are
// bounded. Not emulated: weak memory between barriers, L1 caches that are not coherent, warps in lockstep.
#pragma once

#include <algorithm>

#include "launch.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define DYNAMIC_SHARED_MEMORY(name) float4* const name = static_cast<float4*>(cuda_on_cpu::shared_memory())

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __half {
  _Float16 number;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half x) { return static_cast<float>(x.number); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}

using std::max;
using std::min;

template <typename T>
T __ldcg(const T* from) {
  return *from;
}

namespace cuda_on_cpu {

HIDDEN_FROM_TSAN inline dim3 thread_index() { return {block->current->index, 0, 0}; }
HIDDEN_FROM_TSAN inline dim3 block_index() { return {block->index.x, 0, 0}; }
HIDDEN_FROM_TSAN inline dim3 block_size() { return block->size; }
HIDDEN_FROM_TSAN inline dim3 grid_size() { return block->blocks; }
HIDDEN_FROM_TSAN inline void* shared_memory() { return block->shared; }

}  // namespace cuda_on_cpu

namespace cuda {
enum thread_scope { thread_scope_device };
constexpr int memory_order_relaxed = __ATOMIC_RELAXED;
constexpr int memory_order_acquire = __ATOMIC_ACQUIRE;
constexpr int memory_order_release = __ATOMIC_RELEASE;

// The orders are those that ThreadSanitizer sees.
template <typename T, thread_scope kScope>
class atomic_ref {
 public:
  explicit atomic_ref(T& number) : number_(&number) {}
  T load(int order) const {
    cuda_on_cpu::before_atomic_read();
    return __atomic_load_n(number_, order);
  }
  T fetch_add(T added, int order) const {
    const T before = __atomic_fetch_add(number_, added, order);
    cuda_on_cpu::after_atomic_write();
    return before;
  }

 private:
  T* number_;
};
}  // namespace cuda

namespace cooperative_groups {
struct grid_group {
  void sync() const { cuda_on_cpu::grid_barrier(); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups

#define threadIdx (cuda_on_cpu::thread_index())
#define blockIdx (cuda_on_cpu::block_index())
#define blockDim (cuda_on_cpu::block_size())
#define gridDim (cuda_on_cpu::grid_size())
#define __syncthreads() cuda_on_cpu::block_barrier(__LINE__)

inline void __syncwarp(uint32_t mask = ~0u) { cuda_on_cpu::warp_barrier(mask); }
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return cuda_on_cpu::shuffle(mask, value, source);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
  return cuda_on_cpu::shuffle(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}
