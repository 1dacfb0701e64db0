// The kernel itself, written once with the compiler's vector types and included by one translation unit per
// instruction set. Before including it, define
//   INSTRUCTION_SET     the name of the namespace that keeps the copies apart
//   VECTOR_BYTES        the widest vector register
//   QUANTUM_BYTES       the narrowest vector used: rows of P are padded to a multiple of it
//   TOKENS_AT_ONCE      how many neighbouring tokens share each loaded row of P
// and include every other header first: code that the target pragma covers must not end up in functions that the
// linker may merge with those of other files, or an old processor would meet instructions that it lacks.
//
// Each sum runs over dy, then over dx, for one token and one label, whatever tile or thread computes it: results do
// not depend on the number of threads.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

// A vector that may lie at any address and alias the numbers it is made of.
template <typename Number, int kBytes>
struct Vector {
  typedef Number type __attribute__((vector_size(kBytes), aligned(alignof(Number)), may_alias));
};

// kTokens neighbouring tokens from x0 on, times kVectors * kBytes of labels from `label` on.
template <typename Number, int kBytes, int kVectors, int kTokens>
void multiply_tile(const WindowRow<Number>& row, int64_t x0, int64_t label) {
  using Lanes = typename Vector<Number, kBytes>::type;
  constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(Number));
  const int64_t half_height = row.window_height / 2, half_width = row.window_width / 2;
  const int64_t window_size = row.window_height * row.window_width;

  // Neighbours of the tile, truncated at the border of the grid.
  const int64_t y_begin = row.y < half_height ? 0 : row.y - half_height;
  const int64_t y_end = row.y + half_height + 1 < row.height ? row.y + half_height + 1 : row.height;
  const int64_t x_begin = x0 < half_width ? 0 : x0 - half_width;
  const int64_t x_end = x0 + kTokens + half_width < row.width ? x0 + kTokens + half_width : row.width;

  Lanes sums[kTokens][kVectors] = {};
  for (int64_t ny = y_begin; ny < y_end; ++ny) {
    // weights[t * (window_size - 1) + nx] is the weight with which token x0 + t sees neighbour (ny, nx): one step in x
    // moves on by a whole window, less the one column by which the window itself has moved.
    const Number* weights =
        row.values + x0 * window_size + (ny - row.y + half_height) * row.window_width + half_width - x0;
    const Number* neighbours = row.labels + ny * row.width * row.stride + label;
    for (int64_t nx = x_begin; nx < x_end; ++nx) {
      const Number* neighbour = neighbours + nx * row.stride;
      Lanes p[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) p[v] = *reinterpret_cast<const Lanes*>(neighbour + v * kLanes);
      const int64_t first_token = nx - half_width - x0, last_token = nx + half_width - x0;
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        if (t < first_token || t > last_token) continue;  // outside this token's window
        const Number weight = weights[t * (window_size - 1) + nx];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[t][v] += p[v] * weight;
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Lanes*>(row.out + (x0 + t) * row.stride + label + v * kLanes) = sums[t][v];
  }
}

// All tokens of the row, for one block of labels.
template <typename Number, int kBytes, int kVectors>
void multiply_block(const WindowRow<Number>& row, int64_t label) {
  int64_t x = 0;
  for (; x + TOKENS_AT_ONCE <= row.width; x += TOKENS_AT_ONCE)
    multiply_tile<Number, kBytes, kVectors, TOKENS_AT_ONCE>(row, x, label);
  for (; x < row.width; ++x) multiply_tile<Number, kBytes, kVectors, 1>(row, x, label);
}

// All labels of the row: blocks of four wide vectors, then what is left in as few passes as its size allows.
template <typename Number>
void multiply_row(const WindowRow<Number>& row) {
  constexpr int64_t kQuantum = QUANTUM_BYTES / static_cast<int64_t>(sizeof(Number));
  constexpr int64_t kWide = VECTOR_BYTES / static_cast<int64_t>(sizeof(Number));
  int64_t label = 0;
  for (; row.stride - label >= 4 * kWide; label += 4 * kWide) multiply_block<Number, VECTOR_BYTES, 4>(row, label);
  const int64_t left = row.stride - label;
  if (left == 3 * kQuantum && VECTOR_BYTES > QUANTUM_BYTES) {
    multiply_block<Number, QUANTUM_BYTES, 3>(row, label);
    return;
  }
  const int64_t wide_vectors = left / kWide;
  if (wide_vectors == 1) multiply_block<Number, VECTOR_BYTES, 1>(row, label);
  if (wide_vectors == 2) multiply_block<Number, VECTOR_BYTES, 2>(row, label);
  if (wide_vectors == 3) multiply_block<Number, VECTOR_BYTES, 3>(row, label);
  for (label += wide_vectors * kWide; label < row.stride; label += kQuantum)
    multiply_block<Number, QUANTUM_BYTES, 1>(row, label);
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
