// Products with rows of a sparse graph; see instruction_set.h.
//
// Entries of a row are summed kSets apart, so that one sum need not wait for the one before, and the sets then added in
// order: the same for each row and label, whatever thread computes it.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

constexpr int64_t kEntriesAhead = 32;  // whose rows of P are fetched into L1 meanwhile: as far as L2 takes to answer

// All rows, for kVectors * kBytes of labels from `label` on.
template <typename Number, int kBytes, int kVectors, int kSets>
void sparse_block(const SparseRows<Number>& rows, int64_t label) {
  using Lanes = typename Vector<Number, kBytes>::type;
  constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(Number));
  const Number* p = rows.p + label;
  const int64_t last = rows.row_pointers[rows.row_end];
  for (int64_t row = rows.row_begin; row < rows.row_end; ++row) {
    const int64_t begin = rows.row_pointers[row], end = rows.row_pointers[row + 1];
    Lanes sums[kSets][kVectors] = {};
    int64_t e = begin;
    for (; e + kSets <= end; e += kSets) {
#pragma GCC unroll 4
      for (int s = 0; s < kSets; ++s) {
        if (e + s + kEntriesAhead < last) {
          const Number* ahead = p + rows.columns[e + s + kEntriesAhead] * rows.stride;
#pragma GCC unroll 8
          for (int byte = 0; byte < kBytes * kVectors; byte += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(ahead) + byte);
        }
        const Number* from = p + rows.columns[e + s] * rows.stride;
        const Number weight = rows.values[e + s];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[s][v] += *reinterpret_cast<const Lanes*>(from + v * kLanes) * weight;
      }
    }
    for (; e < end; ++e) {
      const Number* from = p + rows.columns[e] * rows.stride;
      const Number weight = rows.values[e];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[0][v] += *reinterpret_cast<const Lanes*>(from + v * kLanes) * weight;
    }
    Number* out = rows.out + (row - rows.row_begin) * rows.stride + label;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Lanes sum = sums[0][v];
#pragma GCC unroll 4
      for (int s = 1; s < kSets; ++s) sum += sums[s][v];
      if (begin == end) sum = *reinterpret_cast<const Lanes*>(p + row * rows.stride + v * kLanes);
      *reinterpret_cast<Lanes*>(out + v * kLanes) += sum * rows.scale;
    }
  }
}

// All labels, in blocks as wide as the registers allow.
template <typename Number>
void sparse_product(const SparseRows<Number>& rows) {
  constexpr int64_t kQuantum = kLabelQuantumBytes / static_cast<int64_t>(sizeof(Number));
  int64_t label = 0;
  const auto remaining = [&] { return (rows.stride - label) / kQuantum; };
#if VECTOR_BYTES == 64
  for (; remaining() >= 8; label += 8 * kQuantum) sparse_block<Number, 64, 4, 2>(rows, label);
  for (; remaining() >= 4; label += 4 * kQuantum) sparse_block<Number, 64, 2, 4>(rows, label);
  if (remaining() == 3) {
    sparse_block<Number, 32, 3, 4>(rows, label);
    return;
  }
  for (; remaining() >= 2; label += 2 * kQuantum) sparse_block<Number, 64, 1, 4>(rows, label);
  if (remaining() == 1) sparse_block<Number, 32, 1, 4>(rows, label);
#elif VECTOR_BYTES == 32
  for (; remaining() >= 6; label += 6 * kQuantum) sparse_block<Number, 32, 6, 2>(rows, label);
  for (; remaining() >= 3 && remaining() != 4; label += 3 * kQuantum) sparse_block<Number, 32, 3, 4>(rows, label);
  for (; remaining() >= 2; label += 2 * kQuantum) sparse_block<Number, 32, 2, 4>(rows, label);
  if (remaining() == 1) sparse_block<Number, 32, 1, 4>(rows, label);
#else
  for (; remaining() > 0; label += kQuantum) sparse_block<Number, 16, 2, 4>(rows, label);
#endif
}

// products[e] = left[row of e] . p[columns[e]] for the entries of some rows.
template <typename Number>
void sampled_product(const SampledRows<Number>& rows) {
  using Lanes = typename Vector<Number, VECTOR_BYTES < 32 ? VECTOR_BYTES : 32>::type;
  constexpr int64_t kLanes = sizeof(Lanes) / sizeof(Number);
  for (int64_t row = rows.row_begin; row < rows.row_end; ++row) {
    const Number* left = rows.left + row * rows.stride;
    for (int64_t e = rows.row_pointers[row]; e < rows.row_pointers[row + 1]; ++e) {
      const Number* p = rows.p + rows.columns[e] * rows.stride;
      Lanes sum = {};
      for (int64_t label = 0; label < rows.stride; label += kLanes)
        sum += *reinterpret_cast<const Lanes*>(left + label) * *reinterpret_cast<const Lanes*>(p + label);
      rows.products[e] = sum_lanes<Number>(sum);
    }
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
