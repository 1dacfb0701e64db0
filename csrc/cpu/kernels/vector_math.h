// Vectors and their exponential and logarithm; see instruction_set.h. Needs INSTRUCTION_SET and VECTOR_BYTES only.
//
// The C library's exp and log are not used: they are scalar, and their symbols tie the binary to a libc version.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

// A vector that may lie at any address and alias the numbers it is made of.
template <typename Number, int kBytes>
struct Vector {
  typedef Number type __attribute__((vector_size(kBytes), aligned(alignof(Number)), may_alias));
};

template <typename Number>
struct Numbers;

template <>
struct Numbers<float> {
  typedef float Lanes __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(float)), may_alias));
  typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(float)), may_alias));
  static constexpr int kLanes = VECTOR_BYTES / sizeof(float);
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  static constexpr float kRounder = 12582912.0f;
  static constexpr int32_t kRounderBits = 0x4B400000;
  static constexpr float kLowest = -3.402823466e38f;
  // log 2 in two parts; the first has so few digits that its product with any exponent is exact
  static constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
  static constexpr float kSmallestNormalLog = -87.3f;  // exp of it is still a normal number
  static constexpr double kDust = 1.1e-36;             // -kSmallestNormalLog times exp of it
  static constexpr float kSmallestLog = -104.0f;       // exp of it is 0
  static constexpr float kLargestLog = 89.0f;          // exp of it is infinite
  // the coefficients of (e^r - 1 - r) / r^2 on |r| <= log(2)/2, fitted in Chebyshev nodes: relative error of e^r 1.0e-8
  static constexpr float kExp[] = {0.00139262131f, 0.00836320315f, 0.0416665561f, 0.166665763f, 0.5f};
  static constexpr int kLogTerms = 4;  // of the series of atanh; the first one left out is below 2e-9
};

template <>
struct Numbers<double> {
  typedef double Lanes __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(double)), may_alias));
  typedef int64_t Bits __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(double)), may_alias));
  static constexpr int kLanes = VECTOR_BYTES / sizeof(double);
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
  static constexpr double kRounder = 6755399441055744.0;
  static constexpr int64_t kRounderBits = 0x4338000000000000;
  static constexpr double kLowest = -1.7976931348623157e308;
  static constexpr double kLog2High = 0x1.62e42fefap-1, kLog2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kSmallestNormalLog = -708.0, kDust = 2.4e-305, kSmallestLog = -746.0, kLargestLog = 710.0;
  // the Taylor series: 1/14!, ..., 1/2!
  static constexpr double kExp[] = {1.0 / 87178291200, 1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800,
                                    1.0 / 3628800,     1.0 / 362880,     1.0 / 40320,     1.0 / 5040,
                                    1.0 / 720,         1.0 / 120,        1.0 / 24,        1.0 / 6,
                                    0.5};
  static constexpr int kLogTerms = 11;
};

template <typename Number>
using LanesOf = typename Numbers<Number>::Lanes;

template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> load(const Number* from) {
  return *reinterpret_cast<const LanesOf<Number>*>(from);
}

template <typename Number>
inline __attribute__((always_inline)) void store(Number* to, LanesOf<Number> lanes) {
  *reinterpret_cast<LanesOf<Number>*>(to) = lanes;
}

template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> broadcast(Number number) {
  return LanesOf<Number>{} + number;
}

// The larger and the smaller of two; `b` where they are equal or either is not a number.
template <typename Lanes>
inline __attribute__((always_inline)) Lanes larger(Lanes a, Lanes b) {
  return a > b ? a : b;
}
template <typename Lanes>
inline __attribute__((always_inline)) Lanes smaller(Lanes a, Lanes b) {
  return a < b ? a : b;
}
#if VECTOR_BYTES == 64
// One instruction, where the compiler makes a comparison and a move. (GCC 12 warns about its own unmasked form.)
inline __attribute__((always_inline)) LanesOf<float> larger(LanesOf<float> a, LanesOf<float> b) {
  return _mm512_maskz_max_ps(0xFFFF, a, b);
}
inline __attribute__((always_inline)) LanesOf<float> smaller(LanesOf<float> a, LanesOf<float> b) {
  return _mm512_maskz_min_ps(0xFFFF, a, b);
}
#elif VECTOR_BYTES == 32
inline __attribute__((always_inline)) LanesOf<float> larger(LanesOf<float> a, LanesOf<float> b) {
  return _mm256_max_ps(a, b);
}
inline __attribute__((always_inline)) LanesOf<float> smaller(LanesOf<float> a, LanesOf<float> b) {
  return _mm256_min_ps(a, b);
}
#elif defined(__x86_64__)
inline __attribute__((always_inline)) LanesOf<float> larger(LanesOf<float> a, LanesOf<float> b) {
  return _mm_max_ps(a, b);
}
inline __attribute__((always_inline)) LanesOf<float> smaller(LanesOf<float> a, LanesOf<float> b) {
  return _mm_min_ps(a, b);
}
#endif

// e^x is mantissa * 2^n with mantissa = e^r, |r| <= log(2)/2. The low bits of `bits` are n as an integer.
template <typename Number>
struct Exponential {
  LanesOf<Number> mantissa, n;
  typename Numbers<Number>::Bits bits;
};

template <typename Number>
inline __attribute__((always_inline)) Exponential<Number> split_exp(LanesOf<Number> x) {
  using N = Numbers<Number>;
  using Lanes = LanesOf<Number>;
  const Lanes shifted = x * Number(1.4426950408889634) + N::kRounder;
  const Lanes n = shifted - N::kRounder;
  const Lanes r = (x - n * N::kLog2High) - n * N::kLog2Low;
  constexpr int kTerms = sizeof(N::kExp) / sizeof(Number);
  Lanes polynomial = broadcast<Number>(N::kExp[0]);
#pragma GCC unroll 16
  for (int i = 1; i < kTerms; ++i) polynomial = polynomial * r + N::kExp[i];
  return {(polynomial * r + Number(1)) * r + Number(1), n,
          reinterpret_cast<typename N::Bits>(shifted)};
}

// The product with 2^n wherever the result lies, denormal, 0 or infinite: in two steps, each with an exponent that a
// normal number can have.
template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> join_exp(const Exponential<Number>& e) {
  using N = Numbers<Number>;
  const typename N::Bits n = e.bits - N::kRounderBits, half = n >> 1;
  const auto first = reinterpret_cast<LanesOf<Number>>((half + N::kExponentBias) << N::kMantissaBits);
  const auto second = reinterpret_cast<LanesOf<Number>>((n - half + N::kExponentBias) << N::kMantissaBits);
  return e.mantissa * first * second;
}
#if VECTOR_BYTES == 64
inline __attribute__((always_inline)) LanesOf<float> join_exp(const Exponential<float>& e) {
  return _mm512_maskz_scalef_ps(0xFFFF, e.mantissa, e.n);
}
#endif

// e^x for kSmallestNormalLog <= x <= 0, within 2 ulp.
template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> exp_normal(LanesOf<Number> x) {
  using N = Numbers<Number>;
  const Exponential<Number> e = split_exp<Number>(x);
  // multiplying by 2^n is adding n to the exponent; the shift leaves nothing of the higher bits
  return reinterpret_cast<LanesOf<Number>>(reinterpret_cast<typename N::Bits>(e.mantissa) +
                                           (e.bits << N::kMantissaBits));
}

// e^x for any x, within 2 ulp: down to the smallest denormal, 0 for -inf, infinite above the range, not a number for
// such.
template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> exp_any(LanesOf<Number> x) {
  using N = Numbers<Number>;
  return join_exp(split_exp<Number>(
      smaller(broadcast<Number>(N::kLargestLog), larger(broadcast<Number>(N::kSmallestLog), x))));
}

// log x for a normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)).
template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> log_normal(LanesOf<Number> x) {
  using N = Numbers<Number>;
  using Lanes = LanesOf<Number>;
  using Bits = typename N::Bits;
  const Bits root_half = reinterpret_cast<Bits>(broadcast<Number>(Number(0.7071067811865476)));
  const Bits above = reinterpret_cast<Bits>(x) - root_half;
  const Bits exponent = above >> N::kMantissaBits;
  const Lanes m = reinterpret_cast<Lanes>(reinterpret_cast<Bits>(x) - (exponent << N::kMantissaBits));
  const Lanes e = reinterpret_cast<Lanes>(exponent + N::kRounderBits) - N::kRounder;
  const Lanes f = (m - Number(1)) / (m + Number(1));
  const Lanes square = f * f;
  Lanes series = broadcast<Number>(Number(1) / (2 * N::kLogTerms + 1));
#pragma GCC unroll 16
  for (int i = N::kLogTerms - 1; i >= 1; --i) series = series * square + Number(1) / Number(2 * i + 1);
  const Lanes tail = f * square * series;
  return e * N::kLog2High + ((f + f) + (e * N::kLog2Low + (tail + tail)));
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
