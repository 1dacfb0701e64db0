// Labels of pixels from probabilities on tokens; see instruction_set.h.
//
// Between four tokens every label's values lie between the least and the largest of its four corners. So most labels
// are ruled out for all pixels there at once: those whose largest corner is below the best of the least corners.
//
// Numbers are combined in the order and with the rounding of torch.nn.functional.interpolate on contiguous planes,
// along a row first, so that labels are those that an argmax over its result gives.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

// a * wa + b * wb, rounded as torch's own kernel is: where there are fused instructions, the second product is rounded
// and the first is not.
template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> blend(
    LanesOf<Number> a, LanesOf<Number> wa, LanesOf<Number> b, LanesOf<Number> wb) {
#if VECTOR_BYTES == 64
  if constexpr (sizeof(Number) == sizeof(float)) return _mm512_fmadd_ps(a, wa, b * wb);
  else return _mm512_fmadd_pd(a, wa, b * wb);
#elif VECTOR_BYTES == 32
  if constexpr (sizeof(Number) == sizeof(float)) return _mm256_fmadd_ps(a, wa, b * wb);
  else return _mm256_fmadd_pd(a, wa, b * wb);
#else
  return a * wa + b * wb;
#endif
}

template <typename Number>
inline __attribute__((always_inline)) Number larger_of(Number a, Number b) {
  return a > b ? a : b;
}

// Fills in the tokens and weights of one side.
template <typename Number>
void bilinear_side(const BilinearSide<Number>& side) {
  const Number scale = static_cast<Number>(side.tokens) / static_cast<Number>(side.pixels);
  for (int64_t i = 0; i < side.pixels; ++i) {
    Number position = scale * (static_cast<Number>(i) + Number(0.5)) - Number(0.5);
    if (position < 0) position = 0;
    int64_t first = static_cast<int64_t>(position);
    if (first > side.tokens - 1) first = side.tokens - 1;
    Number weight = position - static_cast<Number>(first);
    if (weight > 1) weight = 1;
    side.first[i] = first;
    side.second[i] = first + (first < side.tokens - 1 ? 1 : 0);
    side.first_weight[i] = Number(1) - weight;
    side.second_weight[i] = weight;
  }
}

// Collects the labels that may be the best between the tokens a, b above and c, d below, in their order, with their
// corners; returns how many.
template <typename Number>
int64_t find_candidates(const BestLabelRows<Number>& work, const Number* a, const Number* b, const Number* c,
                        const Number* d) {
  constexpr Number kInfinity = static_cast<Number>(__builtin_inf());
  constexpr Number kEpsilon = sizeof(Number) == sizeof(float) ? 0x1p-23 : 0x1p-52;
  constexpr Number kSmallest = sizeof(Number) == sizeof(float) ? 0x1p-126 : 0x1p-1022;
  Number bound = -kInfinity;
  for (int64_t i = 0; i < work.labels; ++i) {
    const Number largest = larger_of(larger_of(a[i], b[i]), larger_of(c[i], d[i]));
    const Number least = -larger_of(larger_of(-a[i], -b[i]), larger_of(-c[i], -d[i]));
    // A value may leave the range of its corners by rounding: weights that sum to 1 but for the last bit, two blends.
    const Number slack = 16 * kEpsilon * larger_of(largest, -least) + kSmallest;
    const Number sum = a[i] + b[i] + (c[i] + d[i]);
    const bool finite = sum - sum == 0;  // else nothing is known: 0 times infinity is not a number
    work.upper[i] = finite ? largest + slack : kInfinity;
    work.lower[i] = finite ? least - slack : -kInfinity;
  }
  for (int64_t i = 0; i < work.labels; ++i) bound = larger_of(work.lower[i], bound);
  int64_t count = 0;
  for (int64_t i = 0; i < work.labels; ++i) {
    if (work.upper[i] < bound) continue;
    Number* corners = work.corners + 4 * count;
    corners[0] = a[i];
    corners[1] = b[i];
    corners[2] = c[i];
    corners[3] = d[i];
    work.candidates[count++] = i;
  }
  return count;
}

// An index in every lane, in integers as wide as the numbers.
template <typename Number>
inline __attribute__((always_inline)) typename Numbers<Number>::Bits as_label(int64_t index) {
  if constexpr (sizeof(Number) == sizeof(float)) return typename Numbers<Number>::Bits{} + static_cast<int32_t>(index);
  else return typename Numbers<Number>::Bits{} + index;
}

// A block of kRows rows by one vector of pixels: the best label of each, over `count` candidates.
template <int kRows, typename Number>
inline __attribute__((always_inline)) void find_block(
    const BestLabelRows<Number>& work, int64_t count, int64_t row, int64_t x, int64_t pixels) {
  using Lanes = LanesOf<Number>;
  using Bits = typename Numbers<Number>::Bits;
  const Lanes left = load(work.columns.first_weight + x), right = load(work.columns.second_weight + x);
  const Number* above = work.rows.first_weight + row;
  const Number* below = work.rows.second_weight + row;
  Lanes best[kRows];
  Bits label[kRows];
  for (int r = 0; r < kRows; ++r) {
    best[r] = broadcast(static_cast<Number>(-__builtin_inf()));
    label[r] = Bits{};
  }
  for (int64_t k = 0; k < count; ++k) {
    const Number* corner = work.corners + 4 * k;
    const Lanes upper = blend<Number>(broadcast(corner[0]), left, broadcast(corner[1]), right);
    const Lanes lower = blend<Number>(broadcast(corner[2]), left, broadcast(corner[3]), right);
    const Bits candidate = as_label<Number>(work.candidates[k]);
    for (int r = 0; r < kRows; ++r) {
      const Lanes value = blend<Number>(upper, broadcast(above[r]), lower, broadcast(below[r]));
      const auto better = value > best[r];
      best[r] = better ? value : best[r];
      label[r] = better ? candidate : label[r];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    label[r] = best[r] < broadcast(work.threshold) ? as_label<Number>(work.fallback) : label[r];
    int64_t* out = work.out + (row + r) * work.columns.pixels + x;
    for (int64_t i = 0; i < pixels; ++i) out[i] = label[r][i];
  }
}

template <typename Number>
void best_labels(const BestLabelRows<Number>& work) {
  constexpr int kLanes = Numbers<Number>::kLanes, kRows = 4;
  const BilinearSide<Number>& columns = work.columns;
  const int64_t stride = columns.tokens * work.labels;
  const Number* above = work.tokens + work.rows.first[work.row_begin] * stride;
  const Number* below = work.tokens + work.rows.second[work.row_begin] * stride;
  for (int64_t begin = 0, end; begin < columns.pixels; begin = end) {
    end = begin + 1;
    while (end < columns.pixels && columns.first[end] == columns.first[begin]) ++end;
    const int64_t left = columns.first[begin] * work.labels, right = columns.second[begin] * work.labels;
    const int64_t count = find_candidates(work, above + left, above + right, below + left, below + right);
    for (int64_t x = begin; x < end; x += kLanes) {
      const int64_t pixels = end - x < kLanes ? end - x : kLanes;
      int64_t row = work.row_begin;
      for (; row + kRows <= work.row_end; row += kRows) find_block<kRows>(work, count, row, x, pixels);
      for (; row < work.row_end; ++row) find_block<1>(work, count, row, x, pixels);
    }
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
