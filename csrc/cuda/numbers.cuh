#pragma once

// Numbers as they are stored and as they are computed with, and vectors of float32 in shared memory.

#include "walk_plan.cuh"

namespace nerve_kernels::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void narrow(float x, float* to) { *to = x; }
__device__ inline void narrow(float x, __half* to) { *to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

// Calls `function` with a number of the stored kind.
template <typename Function>
__device__ inline void with_number(Number number, Function&& function) {
  switch (number) {
    case Number::kFloat32: return function(float{});
    case Number::kFloat16: return function(__half{});
    case Number::kBFloat16: return function(__nv_bfloat16{});
  }
}

// The labels of one lane, by the widest loads that their alignment allows.
template <int kCount>
__device__ inline void load_labels(const float* from, float (&to)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float2 two = *reinterpret_cast<const float2*>(from + i);
      to[i] = two.x, to[i + 1] = two.y;
    }
  }
}

}  // namespace nerve_kernels::cuda
