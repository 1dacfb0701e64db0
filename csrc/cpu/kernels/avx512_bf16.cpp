// The bfloat16 product for processors with AVX512_BF16.

#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "target_region.h"

BEGIN_TARGET("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma")

namespace nerve_kernels::cpu::avx512 {
namespace {

struct Wide {
  using Sums = __m512;
  static constexpr int64_t kLabels = 16;
  static Sums zero() { return _mm512_setzero_ps(); }
  static __m512bh load(const uint32_t* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static __m512bh broadcast(uint32_t pair) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)); }
  static Sums add(Sums sums, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(sums, a, b); }
  static void accumulate(float* to, Sums sums, float scale) {
    _mm512_storeu_ps(to, _mm512_fmadd_ps(sums, _mm512_set1_ps(scale), _mm512_loadu_ps(to)));
  }
};

struct Narrow {
  using Sums = __m256;
  static constexpr int64_t kLabels = 8;
  static Sums zero() { return _mm256_setzero_ps(); }
  static __m256bh load(const uint32_t* from) {
    return (__m256bh)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static __m256bh broadcast(uint32_t pair) { return (__m256bh)_mm256_set1_epi32(static_cast<int>(pair)); }
  static Sums add(Sums sums, __m256bh a, __m256bh b) { return _mm256_dpbf16_ps(sums, a, b); }
  static void accumulate(float* to, Sums sums, float scale) {
    _mm256_storeu_ps(to, _mm256_fmadd_ps(sums, _mm256_set1_ps(scale), _mm256_loadu_ps(to)));
  }
};

inline uint32_t pair_at(const uint16_t* from) {
  uint32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return pair;
}

template <typename Vector, int kVectors, int kRows>
void product_tile(const Bf16Product& product, int64_t row, int64_t label) {
  const uint16_t* a = product.a + row * product.a_row_stride;
  const uint32_t* b = product.b + label;
  typename Vector::Sums sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector::zero();
  }
  for (int64_t k = 0; k < product.depth; k += 2) {
    decltype(Vector::load(b)) labels[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) labels[v] = Vector::load(b + v * Vector::kLabels);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto weight = Vector::broadcast(pair_at(a + r * product.a_row_stride + k));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector::add(sums[r][v], labels[v], weight);
    }
    b += product.stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      Vector::accumulate(product.out + (row + r) * product.stride + label + v * Vector::kLabels, sums[r][v],
                         product.scale);
  }
}

template <typename Vector, int kVectors, int kRows>
void product_labels(const Bf16Product& product, int64_t label) {
  int64_t row = 0;
  for (; row + kRows <= product.rows; row += kRows) {
    if (label == 0 && product.next != nullptr)
      for (int64_t r = row; r < row + kRows; ++r)
        for (int64_t k = 0; k < product.depth; k += 32)
          __builtin_prefetch(product.next + (r * product.a_row_stride + k) * 2, 0, 2);
    product_tile<Vector, kVectors, kRows>(product, row, label);
  }
  for (; row + 4 <= product.rows; row += 4) product_tile<Vector, kVectors, 4>(product, row, label);
  for (; row < product.rows; ++row) product_tile<Vector, kVectors, 1>(product, row, label);
}

}  // namespace

void bf16_product(const Bf16Product& product) {
  int64_t label = 0;
  const auto remaining = [&] { return product.labels - label; };
  for (; remaining() >= 48 && remaining() != 56; label += 48) product_labels<Wide, 3, 8>(product, label);
  for (; remaining() >= 32; label += 32) product_labels<Wide, 2, 12>(product, label);
  if (remaining() == 24) {
    product_labels<Narrow, 3, 8>(product, label);
    return;
  }
  for (; remaining() >= 16; label += 16) product_labels<Wide, 1, 12>(product, label);
  if (remaining() == 8) product_labels<Narrow, 1, 12>(product, label);
}

}  // namespace nerve_kernels::cpu::avx512

END_TARGET

#endif
