// The gradient of a window product for its values; see instruction_set.h:
// gradient[x, dy, dx] = sum over labels of left[y, x] * p[y + dy, x + dx].

namespace nerve_kernels::cpu::INSTRUCTION_SET {

// The sum of a vector's lanes, halves first.
template <typename Number, typename Lanes>
inline __attribute__((always_inline)) Number sum_lanes(const Lanes& lanes) {
  constexpr int kLanes = sizeof(Lanes) / sizeof(Number);
  Number parts[kLanes];
  __builtin_memcpy(parts, &lanes, sizeof(parts));
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}

// kPlaces neighbouring places of one token's window.
template <typename Number, int kPlaces>
inline __attribute__((always_inline)) void gradient_places(const Number* left, const Number* neighbour, int64_t stride,
                                                           Number* gradient) {
  using Lanes = typename Vector<Number, VECTOR_BYTES < 32 ? VECTOR_BYTES : 32>::type;
  constexpr int64_t kLanes = sizeof(Lanes) / sizeof(Number);
  Lanes sums[kPlaces] = {};
  for (int64_t label = 0; label < stride; label += kLanes) {
    const Lanes own = *reinterpret_cast<const Lanes*>(left + label);
#pragma GCC unroll 8
    for (int i = 0; i < kPlaces; ++i)
      sums[i] += own * *reinterpret_cast<const Lanes*>(neighbour + i * stride + label);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPlaces; ++i) gradient[i] = sum_lanes<Number>(sums[i]);
}

// A whole row of tokens. Places outside the grid are left alone.
template <typename Number>
void window_gradient(const WindowGradientRow<Number>& row) {
  constexpr int kPlaces = 4;
  const int64_t half_height = row.window_height / 2, half_width = row.window_width / 2;
  const int64_t window_size = row.window_height * row.window_width;
  for (int64_t x = 0; x < row.width; ++x) {
    const Number* left = row.left + x * row.stride;
    const int64_t begin = x < half_width ? half_width - x : 0;
    const int64_t end = x + half_width < row.width ? row.window_width : row.width + half_width - x;
    for (int64_t dy = 0; dy < row.window_height; ++dy) {
      const int64_t ny = row.y + dy - half_height;
      if (ny < 0 || ny >= row.height) continue;
      const Number* neighbours = row.p + (ny * row.width + x - half_width) * row.stride;
      Number* gradient = row.gradient + x * window_size + dy * row.window_width;
      int64_t dx = begin;
      for (; dx + kPlaces <= end; dx += kPlaces)
        gradient_places<Number, kPlaces>(left, neighbours + dx * row.stride, row.stride, gradient + dx);
      for (; dx < end; ++dx)
        gradient_places<Number, 1>(left, neighbours + dx * row.stride, row.stride, gradient + dx);
    }
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
