// Attention rows that keep only what is large for its column: see instruction_set.h. On attention_scores.h.
//
// A row is known when all its scores are, so each row's scores stay in L2 until then. Of its log-probabilities s - lse
// those are listed that reach a bound of their column; the rest of the row is forgotten. A bound is the best seen so
// far, so a list may hold more than the rows keep in the end, never less, and what they keep does not depend on it.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

template <typename Number>
struct Keys {
  typedef int32_t Lanes __attribute__((vector_size(Numbers<Number>::kLanes * 4), aligned(4), may_alias));
};
template <typename Number>
using KeysOf = typename Keys<Number>::Lanes;

template <typename Number>
inline __attribute__((always_inline)) KeysOf<Number> load_keys(const int32_t* from) {
  return *reinterpret_cast<const KeysOf<Number>*>(from);
}

// The lanes of `x` that are not below `bound` to the front of `to`, and their keys likewise. Whole vectors are written.
// Returns how many there are.
template <typename Number>
inline __attribute__((always_inline)) int64_t list_lanes(LanesOf<Number> x, LanesOf<Number> bound, KeysOf<Number> keys,
                                                         Number* to, int32_t* to_keys) {
  int64_t count = 0;
  for (int lane = 0; lane < Numbers<Number>::kLanes; ++lane) {
    to[count] = x[lane];
    to_keys[count] = keys[lane];
    count += x[lane] >= bound[lane];
  }
  return count;
}

template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> gather(const Number* from, KeysOf<Number> keys) {
  LanesOf<Number> found;
  for (int lane = 0; lane < Numbers<Number>::kLanes; ++lane) found[lane] = from[keys[lane]];
  return found;
}

#if VECTOR_BYTES == 64
template <>
inline __attribute__((always_inline)) int64_t list_lanes<float>(LanesOf<float> x, LanesOf<float> bound,
                                                                KeysOf<float> keys, float* to, int32_t* to_keys) {
  const __mmask16 listed = _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ);
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(listed, x));
  _mm512_storeu_si512(to_keys, _mm512_maskz_compress_epi32(listed, reinterpret_cast<__m512i>(keys)));
  return __builtin_popcount(listed);
}
#elif VECTOR_BYTES == 32
// For each set of lanes, these lanes first.
struct LaneOrders {
  alignas(32) int32_t lanes[256][8];
  constexpr LaneOrders() : lanes() {
    for (int set = 0; set < 256; ++set)
      for (int lane = 0, place = 0; lane < 8; ++lane)
        if (set >> lane & 1) lanes[set][place++] = lane;
  }
};
constexpr LaneOrders kLaneOrders;

template <>
inline __attribute__((always_inline)) int64_t list_lanes<float>(LanesOf<float> x, LanesOf<float> bound,
                                                                KeysOf<float> keys, float* to, int32_t* to_keys) {
  const int listed = _mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_GE_OQ));
  const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kLaneOrders.lanes[listed]));
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(x, order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_keys),
                      _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(keys), order));
  return __builtin_popcount(listed);
}

template <>
inline __attribute__((always_inline)) LanesOf<float> gather<float>(const float* from, KeysOf<float> keys) {
  return _mm256_i32gather_ps(from, reinterpret_cast<__m256i>(keys), 4);
}
#endif

template <typename Number>
void list_attention(const AttentionListTask<Number>& task) {
  using N = Numbers<Number>;
  using Lanes = LanesOf<Number>;
  const int64_t groups = (task.rows + ROWS_PER_GROUP - 1) / ROWS_PER_GROUP;
  const int64_t panels = (task.keys + kPanelKeys<Number> - 1) / kPanelKeys<Number>;
  const int64_t num_strips = (panels + kPanelsAtOnce - 1) / kPanelsAtOnce;
  auto* strips = reinterpret_cast<Strip<Number>*>(task.scores);  // (groups, num_strips)
  Statistics<Number> statistics[kGroupsAtOnce][ROWS_PER_GROUP];
  for (int64_t group = 0; group < groups; ++group)
    for (int row = 0; row < ROWS_PER_GROUP; ++row) statistics[group][row] = {broadcast<Number>(N::kLowest), Lanes{}, Lanes{}};

  for (int64_t s = 0; s < num_strips; ++s) {
    const int64_t panel = s * kPanelsAtOnce;
    const int64_t in_strip = panels - panel < kPanelsAtOnce ? panels - panel : kPanelsAtOnce;
    const int64_t strip_keys = in_strip * kPanelKeys<Number>, keys_left = task.keys - panel * kPanelKeys<Number>;
    for (int64_t group = 0; group < groups; ++group) {
      Strip<Number>& strip = strips[group * num_strips + s];
      score_strip(task.q + group * task.head_size * ROWS_PER_GROUP, task.k + panel * task.head_size * kPanelKeys<Number>,
                  in_strip, task.head_size, strip);
      for (int row = 0; row < ROWS_PER_GROUP; ++row) {
        for (int64_t key = keys_left; key < strip_keys; ++key) strip.scores[row][key] = -__builtin_inff();  // padding
        update(statistics[group][row], strip.scores[row], strip_keys / N::kLanes);
      }
    }
  }

  const Lanes least = broadcast<Number>(task.least), drop = broadcast<Number>(task.drop);
  Number lse[kGroupsAtOnce * ROWS_PER_GROUP];
  for (int64_t row = 0; row < task.rows; ++row) {
    Number entropy;
    finish(statistics[row / ROWS_PER_GROUP][row % ROWS_PER_GROUP], task.keys, entropy, lse[row]);
    task.counts[row] = lse[row] == lse[row] ? 0 : -1;
  }
  for (int64_t s = 0; s < num_strips; ++s) {
    const int64_t first = s * kStripKeys<Number>;
    const int64_t left = panels * kPanelKeys<Number> - first;
    const int64_t strip_keys = left < kStripKeys<Number> ? left : kStripKeys<Number>;
    for (int64_t row = 0; row < task.rows; ++row) {
      if (task.counts[row] < 0) continue;
      const Number* scores = strips[row / ROWS_PER_GROUP * num_strips + s].scores[row % ROWS_PER_GROUP];
      const Lanes row_lse = broadcast<Number>(lse[row]);
      Number* maxima = task.maxima + first;
      if (task.values == nullptr) {
        for (int64_t key = 0; key < strip_keys; key += N::kLanes)
          store<Number>(maxima + key, larger(load(scores + key) - row_lse, load(maxima + key)));
        continue;
      }
      KeysOf<Number> lane_keys;
      for (int lane = 0; lane < N::kLanes; ++lane) lane_keys[lane] = static_cast<int32_t>(first + lane);
      int64_t count = task.counts[row];
      Number* values = task.values + row * task.list_stride;
      int32_t* keys = task.list_keys + row * task.list_stride;
      for (int64_t key = 0; key < strip_keys; key += N::kLanes) {
        const Lanes x = load(scores + key) - row_lse;
        const Lanes largest = larger(x, load(maxima + key));
        store<Number>(maxima + key, largest);
        count += list_lanes<Number>(x, larger(largest + drop, least), lane_keys, values + count, keys + count);
        lane_keys += N::kLanes;
      }
      task.counts[row] = count;
    }
  }
}

// What is left of a row's list becomes shares of the largest of their columns. Returns their sum.
template <typename Number>
Number sharpen_list(const SharpenedRow<Number>& row, int64_t& kept) {
  using N = Numbers<Number>;
  using Lanes = LanesOf<Number>;
  const Lanes threshold = broadcast<Number>(row.threshold);
  int64_t i = 0;
  kept = 0;
  for (; i + N::kLanes <= row.count; i += N::kLanes) {
    const KeysOf<Number> keys = load_keys<Number>(row.list_keys + i);
    const Lanes ratio = exp_any<Number>(load(row.values + i)) * gather<Number>(row.shares, keys);
    kept += list_lanes<Number>(ratio, threshold, keys, row.values + kept, row.list_keys + kept);
  }
  // What follows may be another row's list: no whole vector is written over its beginning.
  for (; i < row.count; ++i) {
    const int32_t key = row.list_keys[i];
    const Number ratio = exp_any<Number>(broadcast<Number>(row.values[i]))[0] * row.shares[key];
    row.values[kept] = ratio;
    row.list_keys[kept] = key;
    kept += ratio >= row.threshold;
  }
  // Only now, as what was listed besides differs from thread to thread, and with it the lanes.
  Lanes sums = {};
  for (i = 0; i + N::kLanes <= kept; i += N::kLanes) sums += load(row.values + i);
  Number sum = 0;
  for (; i < kept; ++i) sum += row.values[i];
  for (int lane = 0; lane < N::kLanes; ++lane) sum += sums[lane];
  return sum;
}

// `kVectors` vectors of labels of one row. Two entries at a time, as each sum waits for the one before.
template <typename Number, int kVectors>
inline __attribute__((always_inline)) void add_list(const SharpenedRow<Number>& row, int64_t kept, Number factor,
                                                    int64_t label) {
  constexpr int kLanes = Numbers<Number>::kLanes;
  LanesOf<Number> even[kVectors] = {}, odd[kVectors] = {};
  const Number* p = row.p + label;
  int64_t i = 0;
  for (; i + 2 <= kept; i += 2) {
    const Number* one = p + row.list_keys[i] * row.stride;
    const Number* other = p + row.list_keys[i + 1] * row.stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      even[v] += load(one + v * kLanes) * row.values[i];
      odd[v] += load(other + v * kLanes) * row.values[i + 1];
    }
  }
  if (i < kept) {
    const Number* one = p + row.list_keys[i] * row.stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) even[v] += load(one + v * kLanes) * row.values[i];
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store<Number>(row.out + label + v * kLanes, (even[v] + odd[v]) * factor);
}

template <typename Number>
void sharpened_row(const SharpenedRow<Number>& row) {
  constexpr int kLanes = Numbers<Number>::kLanes;
  int64_t kept = 0;
  const Number factor = Number(1) / (sharpen_list(row, kept) + row.epsilon);
  int64_t label = 0;
  for (; label + 4 * kLanes <= row.stride; label += 4 * kLanes) add_list<Number, 4>(row, kept, factor, label);
  switch ((row.stride - label) / kLanes) {
    case 3: add_list<Number, 3>(row, kept, factor, label); break;
    case 2: add_list<Number, 2>(row, kept, factor, label); break;
    case 1: add_list<Number, 1>(row, kept, factor, label); break;
    default: break;
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
