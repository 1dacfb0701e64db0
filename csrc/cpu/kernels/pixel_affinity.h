// Weights of a pixel's neighbours from colours, for some pixels of one row; see instruction_set.h.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

inline __attribute__((always_inline)) LanesOf<float> square_root(LanesOf<float> x) {
#if VECTOR_BYTES == 64
  return _mm512_maskz_sqrt_ps(0xFFFF, x);
#elif VECTOR_BYTES == 32
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < Numbers<float>::kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline __attribute__((always_inline)) LanesOf<double> square_root(LanesOf<double> x) {
#if VECTOR_BYTES == 64
  return _mm512_maskz_sqrt_pd(0xFF, x);
#elif VECTOR_BYTES == 32
  return _mm256_sqrt_pd(x);
#else
  for (int i = 0; i < Numbers<double>::kLanes; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// e^x for x <= 0: 0 where it would be no normal number, not a number for such.
template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> exp_of_negative(LanesOf<Number> x) {
  using Lanes = LanesOf<Number>;
  const Lanes smallest = broadcast<Number>(Numbers<Number>::kSmallestNormalLog);
  const Lanes power = x < smallest ? Lanes{} : exp_normal<Number>(larger(smallest, x));
  return x == x ? power : x;
}

// Exponents of PAMR: -|difference| / (1e-8 + 0.1 * deviation), averaged over channels. Deviations are taken around the
// pixel itself, which is among the samples: their mean is never far from it.
template <typename Number>
void contrast_exponents(const PixelRow<Number>& row, int64_t x) {
  using Lanes = LanesOf<Number>;
  const Number count = static_cast<Number>(row.offsets + row.centres);
  for (int64_t channel = 0; channel < row.channels; ++channel) {
    const Number* plane = row.image + channel * row.plane_stride + x;
    const Lanes centre = load(plane);
    Lanes sum = {}, squares = {};
    for (int64_t i = 0; i < row.offsets; ++i) {
      const Lanes difference = load(plane + row.places[i]) - centre;
      sum += difference;
      squares += difference * difference;
    }
    const Lanes variance = (squares - sum * sum / count) / (count - 1);
    // a negative one is rounding; what is not a number stays so
    const Lanes deviation = square_root(variance < 0 ? Lanes{} : variance);
    const Lanes slope = Number(-1) / ((Number(1e-8) + Number(0.1) * deviation) * static_cast<Number>(row.channels));
    for (int64_t i = 0; i < row.offsets; ++i) {
      const Lanes difference = load(plane + row.places[i]) - centre;
      const Lanes term = (difference < 0 ? -difference : difference) * slope;
      Number* exponent = row.values + i * kPixelsAtOnce + x;
      store(exponent, channel == 0 ? term : load(exponent) + term);
    }
  }
}

// -distance / scale, or -distance^2 / scale, and what the offset adds.
template <typename Number>
void distance_exponents(const PixelRow<Number>& row, int64_t x) {
  using Lanes = LanesOf<Number>;
  const Number* plane = row.image + x;
  const Number slope = Number(-1) / row.scale;
  for (int64_t i = 0; i < row.offsets; ++i) {
    Lanes squares = {};
    for (int64_t channel = 0; channel < row.channels; ++channel) {
      const Number* centre = plane + channel * row.plane_stride;
      const Lanes difference = load(centre + row.places[i]) - load(centre);
      squares += difference * difference;
    }
    const Lanes distance = row.kind == PixelKind::kSquare ? squares : square_root(squares);
    store(row.values + i * kPixelsAtOnce + x, distance * slope + row.decay[i]);
  }
}

template <typename Number>
void pixel_affinity(const PixelRow<Number>& row) {
  using Lanes = LanesOf<Number>;
  constexpr int64_t kLanes = Numbers<Number>::kLanes;
  for (int64_t x = 0; x < row.pixels; x += kLanes) {
    if (row.kind == PixelKind::kContrast)
      contrast_exponents(row, x);
    else
      distance_exponents(row, x);
  }
  for (int64_t x = 0; x < row.pixels; x += kLanes) {
    // only shares count where weights are divided by their sum
    Lanes largest = {};
    if (row.kind == PixelKind::kContrast) {
      largest = load(row.values + x);
      for (int64_t i = 1; i < row.offsets; ++i) largest = larger(load(row.values + i * kPixelsAtOnce + x), largest);
    }
    for (int64_t i = 0; i < row.offsets; ++i) {
      Number* value = row.values + i * kPixelsAtOnce + x;
      store(value, exp_of_negative<Number>(load(value) - largest));
    }
  }
  for (int64_t i = 0; i < row.offsets; ++i) {
    Number* values = row.values + i * kPixelsAtOnce;
    for (int64_t x = 0; x < row.begin[i]; ++x) values[x] = 0;
    for (int64_t x = row.end[i]; x < row.pixels; ++x) values[x] = 0;
  }
  for (int64_t x = 0; x < row.pixels; x += kLanes) {
    Lanes sum = {};
    for (int64_t i = 0; i < row.offsets; ++i) sum += load(row.values + i * kPixelsAtOnce + x);
    store(row.sums + x, sum);
    if (row.roots == nullptr && !row.divide) continue;
    const Lanes factor = row.divide ? Number(1) / (sum == 0 ? broadcast(Number(1)) : sum) : load(row.roots + x);
    for (int64_t i = 0; i < row.offsets; ++i) {
      Number* value = row.values + i * kPixelsAtOnce + x;
      Lanes scaled = load(value) * factor;
      if (!row.divide) scaled *= load(row.roots + row.places[i] + x);
      store(value, scaled);
    }
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
