// The window product S_local @ P; see instruction_set.h.
//
// Each sum runs over dy, then over dx, for one token and one label, whatever tile or thread computes it: results do
// not depend on the number of threads.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

constexpr int kTokensAtOnce = 4;  // neighbouring tokens of a tile: enough sums for the latency of one

// What a neighbour gives to the tokens from `kFirst` to `kLast` of a tile: its labels, read once, times the weight with
// which each of them sees it. `weights` points to the place that token 0 would see it at; one token further the same
// neighbour is one place to the left.
template <typename Number, typename Lanes, int kVectors, int kTokens>
inline __attribute__((always_inline)) void add_neighbour(Lanes (&sums)[kTokens][kVectors], const Number* neighbour,
                                                         const Number* weights, int64_t window_size, int first,
                                                         int last) {
  Lanes p[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v)
    p[v] = *reinterpret_cast<const Lanes*>(neighbour + v * static_cast<int64_t>(sizeof(Lanes) / sizeof(Number)));
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    if (t < first || t > last) continue;
    const Number weight = weights[t * (window_size - 1)];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[t][v] += p[v] * weight;
  }
}

// kTokens neighbouring tokens from x0 on, times kVectors * kBytes of labels from `label` on. Where the windows of all
// of them lie between the left and the right border (kInside) it is known which token sees which neighbour.
template <typename Number, int kBytes, int kVectors, int kTokens, bool kInside>
void window_tile(const WindowRow<Number>& row, int64_t x0, int64_t label) {
  using Lanes = typename Vector<Number, kBytes>::type;
  constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(Number));
  const int64_t half_height = row.window_height / 2, half_width = row.window_width / 2;
  const int64_t window_size = row.window_height * row.window_width;
  const int64_t y_begin = row.y < half_height ? 0 : row.y - half_height;
  const int64_t y_end = row.y + half_height + 1 < row.height ? row.y + half_height + 1 : row.height;

  Lanes sums[kTokens][kVectors] = {};
  for (int64_t ny = y_begin; ny < y_end; ++ny) {
    const Number* weights = row.values + x0 * window_size + (ny - row.y + half_height) * row.window_width;
    const Number* neighbour = row.p + (ny * row.width + x0 - half_width) * row.stride + label;
    if constexpr (kInside) {
      // the first neighbours are seen by the first tokens only, the last by the last
#pragma GCC unroll 8
      for (int last = 0; last < kTokens - 1; ++last, ++weights, neighbour += row.stride)
        add_neighbour<Number>(sums, neighbour, weights, window_size, 0, last);
      for (int64_t dx = kTokens - 1; dx < row.window_width; ++dx, ++weights, neighbour += row.stride)
        add_neighbour<Number>(sums, neighbour, weights, window_size, 0, kTokens - 1);
#pragma GCC unroll 8
      for (int first = 1; first < kTokens; ++first, ++weights, neighbour += row.stride)
        add_neighbour<Number>(sums, neighbour, weights, window_size, first, kTokens - 1);
    } else {
      const int64_t begin = x0 < half_width ? half_width - x0 : 0;
      const int64_t beyond = row.width + half_width - x0, all = row.window_width + kTokens - 1;
      for (int64_t dx = begin; dx < (beyond < all ? beyond : all); ++dx)
        add_neighbour<Number>(sums, neighbour + dx * row.stride, weights + dx, window_size,
                              dx < row.window_width ? 0 : static_cast<int>(dx - row.window_width + 1),
                              dx < kTokens ? static_cast<int>(dx) : kTokens - 1);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Lanes* out = reinterpret_cast<Lanes*>(row.out + (x0 + t) * row.stride + label + v * kLanes);
      *out += sums[t][v] * row.scale;
    }
  }
}

// All tokens of the row, for one block of labels.
template <typename Number, int kBytes, int kVectors>
void window_block(const WindowRow<Number>& row, int64_t label) {
  const int64_t half_width = row.window_width / 2;
  int64_t x = row.x_begin;
  for (; x + kTokensAtOnce <= row.x_end; x += kTokensAtOnce) {
    if (row.window_width >= kTokensAtOnce - 1 && x >= half_width && x + kTokensAtOnce - 1 + half_width < row.width)
      window_tile<Number, kBytes, kVectors, kTokensAtOnce, true>(row, x, label);
    else
      window_tile<Number, kBytes, kVectors, kTokensAtOnce, false>(row, x, label);
  }
  for (; x < row.x_end; ++x) window_tile<Number, kBytes, kVectors, 1, false>(row, x, label);
}

// All labels of the row, in blocks as wide as the registers allow.
template <typename Number>
void window_product(const WindowRow<Number>& row) {
  constexpr int64_t kQuantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
  int64_t label = 0;
  const auto remaining = [&] { return (row.stride - label) / kQuantum; };
#if VECTOR_BYTES == 64
  for (; remaining() >= 8; label += 8 * kQuantum) window_block<Number, 64, 4>(row, label);
  if (remaining() == 6) {
    window_block<Number, 64, 3>(row, label);
    return;
  }
  for (; remaining() >= 4; label += 4 * kQuantum) window_block<Number, 64, 2>(row, label);
  if (remaining() == 3) {
    window_block<Number, 32, 3>(row, label);
    return;
  }
  for (; remaining() >= 2; label += 2 * kQuantum) window_block<Number, 64, 1>(row, label);
  if (remaining() == 1) window_block<Number, 32, 1>(row, label);
#elif VECTOR_BYTES == 32
  for (; remaining() >= 3 && remaining() != 4; label += 3 * kQuantum) window_block<Number, 32, 3>(row, label);
  for (; remaining() >= 2; label += 2 * kQuantum) window_block<Number, 32, 2>(row, label);
  if (remaining() == 1) window_block<Number, 32, 1>(row, label);
#else
  for (; remaining() > 0; label += kQuantum) window_block<Number, 16, 2>(row, label);
#endif
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
