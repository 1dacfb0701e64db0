// The matrix product of the walk; see instruction_set.h.
//
// A register tile holds kRows rows times kVectors vectors of labels; each sum runs over k in order, for one row and one
// label, whatever tile computes it.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

template <typename Number, int kBytes, int kVectors, int kRows, bool kRowsAreNeighbours>
void product_tile(const BlockProduct<Number>& product, int64_t row, int64_t label) {
  using Lanes = typename Vector<Number, kBytes>::type;
  constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(Number));
  const int64_t row_stride = kRowsAreNeighbours ? 1 : product.a_row_stride;
  const int64_t depth_stride = kRowsAreNeighbours ? product.a_depth_stride : 1;
  const Number* a = product.a + row * row_stride;
  const Number* b = product.b + label;

  Lanes sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < product.depth; ++k) {
    Lanes labels[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) labels[v] = *reinterpret_cast<const Lanes*>(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Number weight = a[r * row_stride];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += labels[v] * weight;
    }
    a += depth_stride;
    b += product.stride;
  }
  Number* out = product.out + row * product.stride + label;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Lanes* to = reinterpret_cast<Lanes*>(out + r * product.stride + v * kLanes);
      *to += sums[r][v] * product.scale;
    }
  }
}

// All rows, for one block of labels.
template <typename Number, int kBytes, int kVectors, int kRows, bool kRowsAreNeighbours>
void product_labels(const BlockProduct<Number>& product, int64_t label) {
  int64_t row = 0;
  for (; row + kRows <= product.rows; row += kRows) {
    if (label == 0 && product.next != nullptr)
      for (int64_t r = row; r < row + kRows; ++r)
        for (int64_t byte = 0; byte < product.next_row_bytes; byte += 64)
          __builtin_prefetch(product.next + r * product.next_row_stride + byte, 0, 2);
    product_tile<Number, kBytes, kVectors, kRows, kRowsAreNeighbours>(product, row, label);
  }
  for (; row + 4 <= product.rows; row += 4)
    product_tile<Number, kBytes, kVectors, 4, kRowsAreNeighbours>(product, row, label);
  for (; row < product.rows; ++row)
    product_tile<Number, kBytes, kVectors, 1, kRowsAreNeighbours>(product, row, label);
}

// All labels, in blocks as wide as the registers allow.
template <typename Number, bool kRowsAreNeighbours>
void multiply_blocks(const BlockProduct<Number>& product) {
  constexpr int64_t kQuantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
  int64_t label = 0;
  const auto remaining = [&] { return (product.labels - label) / kQuantum; };
#if VECTOR_BYTES == 64
  for (; remaining() >= 6 && remaining() != 7; label += 6 * kQuantum)
    product_labels<Number, 64, 3, 8, kRowsAreNeighbours>(product, label);
  for (; remaining() >= 4; label += 4 * kQuantum) product_labels<Number, 64, 2, 12, kRowsAreNeighbours>(product, label);
  if (remaining() == 3) {
    product_labels<Number, 32, 3, 8, kRowsAreNeighbours>(product, label);
    return;
  }
  for (; remaining() >= 2; label += 2 * kQuantum) product_labels<Number, 64, 1, 12, kRowsAreNeighbours>(product, label);
  if (remaining() == 1) product_labels<Number, 32, 1, 12, kRowsAreNeighbours>(product, label);
#elif VECTOR_BYTES == 32
  for (; remaining() >= 3 && remaining() != 4; label += 3 * kQuantum)
    product_labels<Number, 32, 3, 4, kRowsAreNeighbours>(product, label);
  for (; remaining() >= 2; label += 2 * kQuantum) product_labels<Number, 32, 2, 6, kRowsAreNeighbours>(product, label);
  if (remaining() == 1) product_labels<Number, 32, 1, 8, kRowsAreNeighbours>(product, label);
#else
  for (; remaining() > 0; label += kQuantum) product_labels<Number, 16, 2, 6, kRowsAreNeighbours>(product, label);
#endif
}

template <typename Number>
void block_product(const BlockProduct<Number>& product) {
  if (product.a_depth_stride == 1)
    multiply_blocks<Number, false>(product);
  else
    multiply_blocks<Number, true>(product);
}

template <typename Number>
void sum_tokens(const TokenSum<Number>& task) {
  using Lanes = typename Vector<Number, VECTOR_BYTES < 32 ? VECTOR_BYTES : 32>::type;
  constexpr int64_t kLanes = sizeof(Lanes) / sizeof(Number);
  for (int64_t token = 0; token < task.count; ++token)
    for (int64_t label = 0; label < task.stride; label += kLanes)
      *reinterpret_cast<Lanes*>(task.sum + label) +=
          *reinterpret_cast<const Lanes*>(task.tokens + token * task.stride + label);
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
