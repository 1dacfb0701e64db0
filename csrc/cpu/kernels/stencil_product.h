// The product with window values at any offsets, on planes of labels, for one or two grid rows; see instruction_set.h.
//
// Lanes are neighbouring tokens: a neighbour is the same vector some places further. Weights are read once for all labels
// of a block. Of two rows, a neighbour that both have is read once. Each sum runs over its row's offsets in their order,
// whatever block or thread computes it: results do not depend on the number of threads.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

// Labels of a block: two vectors of sums for each, and two of weights; of two rows a vector of neighbours besides.
#if VECTOR_BYTES == 64
constexpr int kStencilLabels = 12, kTwoRowLabels = 12;
#elif VECTOR_BYTES == 32
constexpr int kStencilLabels = 7, kTwoRowLabels = 6;
#else
constexpr int kStencilLabels = 6, kTwoRowLabels = 5;
#endif

// What must be in a register: a vector that is used twice, which the compiler would read twice, and pointers whose
// distances it would add anew for every neighbour.
template <typename Lanes>
inline __attribute__((always_inline)) Lanes keep_vector(Lanes lanes) {
#if defined(__x86_64__)
  asm("" : "+x"(lanes));
#elif defined(__aarch64__)
  asm("" : "+w"(lanes));
#endif
  return lanes;
}
template <typename Number>
inline __attribute__((always_inline)) void keep_pointer(const Number*& pointer) {
  asm("" : "+r"(pointer));
}

// Some tokens of a vector.
template <typename Number>
inline __attribute__((always_inline)) void store_tokens(Number* out, LanesOf<Number> result, int64_t count) {
  if (__builtin_expect(count >= Numbers<Number>::kLanes, 1)) {
    store(out, result);
  } else {
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; ++i) out[i] = result[i];
  }
}

// kLabels labels from `label` on. Two vectors of tokens at a time: neighbours, or of two rows.
template <typename Number, int kLabels, bool kTwoRows>
void stencil_block(const StencilRows<Number>& rows, int64_t label) {
  using Lanes = LanesOf<Number>;
  constexpr int64_t kLanes = Numbers<Number>::kLanes;
  const Number *first_weight = rows.weights[0], *second_weight = rows.weights[1];
  for (int64_t x = 0; x < rows.tokens; x += kTwoRows ? kLanes : 2 * kLanes) {
    Lanes first[kLabels] = {}, second[kLabels] = {};
    if (rows.restart != nullptr) {
      const Number* restart = rows.restart + label * rows.plane_stride + x;
#pragma GCC unroll 16
      for (int c = 0; c < kLabels; ++c, restart += rows.plane_stride) {
        first[c] = load(restart);
        second[c] = load(restart + (kTwoRows ? rows.row_stride : kLanes));
      }
    }
    const Number* plane[kLabels];
#pragma GCC unroll 16
    for (int c = 0; c < kLabels; ++c) {
      plane[c] = rows.p + (label + c) * rows.plane_stride + x;
      keep_pointer(plane[c]);
    }
    const int64_t* place = rows.places;
    for (int64_t s = 0; s < rows.num_segments; ++s) {
      const StencilSegment segment = rows.segments[s];
      const int64_t* end = place + segment.count;
      if constexpr (!kTwoRows) {
        for (; place != end; ++place, first_weight += 2 * kLanes) {
          const Lanes w_first = load(first_weight), w_second = load(first_weight + kLanes);
#pragma GCC unroll 16
          for (int c = 0; c < kLabels; ++c) {
            first[c] += w_first * load(plane[c] + *place);
            second[c] += w_second * load(plane[c] + *place + kLanes);
          }
        }
      } else if (segment.of_first && segment.of_second) {
        for (; place != end; ++place, first_weight += kLanes, second_weight += kLanes) {
          const Lanes w_first = load(first_weight), w_second = load(second_weight);
#pragma GCC unroll 16
          for (int c = 0; c < kLabels; ++c) {
            const Lanes neighbour = keep_vector(load(plane[c] + *place));
            first[c] += w_first * neighbour;
            second[c] += w_second * neighbour;
          }
        }
      } else if (segment.of_first) {
        for (; place != end; ++place, first_weight += kLanes) {
          const Lanes weight = load(first_weight);
#pragma GCC unroll 16
          for (int c = 0; c < kLabels; ++c) first[c] += weight * load(plane[c] + *place);
        }
      } else {
        for (; place != end; ++place, second_weight += kLanes) {
          const Lanes weight = load(second_weight);
#pragma GCC unroll 16
          for (int c = 0; c < kLabels; ++c) second[c] += weight * load(plane[c] + *place);
        }
      }
    }
    const int64_t count = rows.tokens - x;
    Number* out = rows.out + label * rows.out_stride + x;
#pragma GCC unroll 16
    for (int c = 0; c < kLabels; ++c, out += rows.out_stride) {
      store_tokens(out, first[c], count);
      store_tokens(out + (kTwoRows ? rows.out_row_stride : kLanes), second[c], kTwoRows ? count : count - kLanes);
    }
  }
}

// The labels that are left, kLabels or fewer.
template <typename Number, int kLabels, bool kTwoRows>
void stencil_labels(const StencilRows<Number>& rows, int64_t label, int64_t count) {
  if (count == kLabels)
    stencil_block<Number, kLabels, kTwoRows>(rows, label);
  else if constexpr (kLabels > 1)
    stencil_labels<Number, kLabels - 1, kTwoRows>(rows, label, count);
}

// All labels, in blocks of about the same size.
template <typename Number, int kLabels, bool kTwoRows>
void stencil_blocks(const StencilRows<Number>& rows) {
  int64_t label = 0;
  for (int64_t blocks = (rows.labels + kLabels - 1) / kLabels; blocks > 0; --blocks) {
    const int64_t count = (rows.labels - label + blocks - 1) / blocks;
    stencil_labels<Number, kLabels, kTwoRows>(rows, label, count);
    label += count;
  }
}

template <typename Number>
void stencil_product(const StencilRows<Number>& rows) {
  if (rows.rows == 2)
    stencil_blocks<Number, kTwoRowLabels, true>(rows);
  else
    stencil_blocks<Number, kStencilLabels, false>(rows);
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
