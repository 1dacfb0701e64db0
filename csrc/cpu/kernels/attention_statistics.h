// Entropy, window and cells of attention rows in one pass over the keys; see instruction_set.h. On attention_scores.h.
//
// All exponentials of a strip are taken under one maximum for the row, not one for each lane as for the entropy alone:
// they are also summed by cell, and cells cut across lanes. A row of cells keeps the maximum under which it was summed,
// and is brought to the row's own sum at the end.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

template <typename Number>
inline __attribute__((always_inline)) Number largest_lane(LanesOf<Number> lanes) {
  Number m = lanes[0];
  for (int i = 1; i < Numbers<Number>::kLanes; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}
template <typename Number>
inline __attribute__((always_inline)) bool any_above(LanesOf<Number> lanes, Number bound) {
  bool any = false;
  for (int i = 0; i < Numbers<Number>::kLanes; ++i) any |= lanes[i] > bound;
  return any;
}
#if VECTOR_BYTES == 64
template <>
inline __attribute__((always_inline)) bool any_above<float>(LanesOf<float> lanes, float bound) {
  return _mm512_cmp_ps_mask(lanes, broadcast<float>(bound), _CMP_GT_OQ) != 0;
}
#elif VECTOR_BYTES == 32
template <>
inline __attribute__((always_inline)) bool any_above<float>(LanesOf<float> lanes, float bound) {
  return _mm256_movemask_ps(_mm256_cmp_ps(lanes, broadcast<float>(bound), _CMP_GT_OQ)) != 0;
}
#endif
#if VECTOR_BYTES == 64 || VECTOR_BYTES == 32
inline __attribute__((always_inline)) float largest_of_eight(__m256 lanes) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
template <>
inline __attribute__((always_inline)) float largest_lane<float>(LanesOf<float> lanes) {
#if VECTOR_BYTES == 64
  __m256 halves[2];  // GCC 12 warns about its own _mm512_reduce_max_ps
  __builtin_memcpy(halves, &lanes, sizeof halves);
  return largest_of_eight(_mm256_max_ps(halves[0], halves[1]));
#else
  return largest_of_eight(lanes);
#endif
}
#endif

#if VECTOR_BYTES == 32
// The sums of a's neighbours (0 and 1, 2 and 3, ...), then of b's.
inline __attribute__((always_inline)) LanesOf<float> neighbours_added(LanesOf<float> a, LanesOf<float> b) {
  const __m256d by_halves = _mm256_castps_pd(_mm256_hadd_ps(a, b));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(by_halves, 0b11011000));
}
#endif

// What is known of one row so far: m, which is max s or a little less; l, t and l of the cells as lanes that are added up
// at the end.
template <typename Number>
struct RowSums {
  Number m;
  LanesOf<Number> l, t, cell_l;
};

// Where a strip lies on the grid of keys.
struct StripPlace {
  int64_t first_key, keys;           // without padding
  int64_t first_y, first_x, last_y;  // the grid positions of its first key and the grid row of its last

  static StripPlace of(int64_t first_key, int64_t keys, int64_t width) {
    return {first_key, keys, first_key / width, first_key % width, (first_key + keys - 1) / width};
  }
};

// Calls run(key, count, place) for each run of a strip's keys in the window of the token (y, x): `key` counts from the
// strip's first, `place` is that of the first of them in the window.
template <typename Task, typename Run>
inline __attribute__((always_inline)) void for_window_runs(const Task& task, const StripPlace& strip, int64_t token_y,
                                                           int64_t token_x, const Run& run) {
  const int64_t half_height = task.window_height / 2, half_width = task.window_width / 2;
  const int64_t top = token_y - half_height, left = token_x - half_width;
  if (strip.last_y < top || strip.first_y > token_y + half_height) return;
  const int64_t end_key = strip.first_key + strip.keys;
  const int64_t x_begin = left > 0 ? left : 0;
  const int64_t x_end = token_x + half_width + 1 < task.width ? token_x + half_width + 1 : task.width;
  for (int64_t y = strip.first_y > top ? strip.first_y : top; y <= strip.last_y && y <= token_y + half_height; ++y) {
    const int64_t row_key = y * task.width;
    const int64_t begin = row_key + x_begin > strip.first_key ? row_key + x_begin : strip.first_key;
    const int64_t end = row_key + x_end < end_key ? row_key + x_end : end_key;
    if (begin < end)
      run(begin - strip.first_key, end - begin, (y - top) * task.window_width + begin - row_key - left);
  }
}

template <typename Number>
class StatisticsRows {
 public:
  explicit StatisticsRows(const StatisticsTask<Number>& task)
      : task_(task), slack_(task.sharpness == Number(1) ? 4 : 0) {
    using N = Numbers<Number>;
    for (int64_t row = 0; row < task.rows; ++row) {
      rows_[row] = RowSums<Number>{N::kLowest, LanesOf<Number>{}, LanesOf<Number>{}, LanesOf<Number>{}};
      y_[row] = (task.first_row + row) / task.width;
      x_[row] = (task.first_row + row) % task.width;
    }
    for (int64_t i = 0; i < task.rows * task.window_height * task.window_width; ++i)
      task.local[i] = -Number(__builtin_inff());
  }

  void move_to(int64_t first_key, int64_t keys) {
    place_ = StripPlace::of(first_key, keys, task_.width);
    cell_row_ = next_cell_row_;
  }

  // The maximum of a row moves on to that of a strip. For all rows of a group before the first is taken: what one row
  // waits for, from the maxima of its lanes to the maximum, others fill.
  void look_at(int64_t row, const Number* scores, int64_t vectors) {
    keep_window(row, scores);
    move_maximum(rows_[row], scores, vectors, task_.columns + row * task_.column_stride);
  }

  // One row of a strip, looked at before. Rows of a strip may come in any order, but all of them come.
  void take(int64_t row, const Number* scores) {
    RowSums<Number>& sums = rows_[row];
    Number* columns = task_.columns + row * task_.column_stride;
    if (task_.sharpness == Number(1))
      exponentiate<false>(row, sums, scores, columns);
    else
      exponentiate<true>(row, sums, scores, columns);
  }

  void finish_rows() {
    for (int64_t row = 0; row < task_.rows; ++row) finish_row(row);
  }

 private:
  // The scores in the row's window as they are: they are exponentiated when lse is known.
  void keep_window(int64_t row, const Number* scores) {
    Number* local = task_.local + row * task_.window_height * task_.window_width;
    for_window_runs(task_, place_, y_[row], x_[row], [&](int64_t key, int64_t count, int64_t place) {
      for (int64_t i = 0; i < count; ++i) local[place + i] = scores[key + i];
    });
  }

  void move_maximum(RowSums<Number>& sums, const Number* scores, int64_t vectors, Number* columns) {
    using N = Numbers<Number>;
    using Lanes = LanesOf<Number>;
    // What is not a number is passed over and caught by the sum. Four maxima at a time, as each waits for the one before.
    Lanes largest[4];
    for (int i = 0; i < 4; ++i) largest[i] = broadcast<Number>(N::kLowest);
    static_assert(kVectorsPerPanel % 2 == 0);
    for (int64_t v = 0; v < vectors; v += 4) {
      largest[0] = larger(load(scores + v * N::kLanes), largest[0]);
      largest[1] = larger(load(scores + (v + 1) * N::kLanes), largest[1]);
      if (v + 2 == vectors) break;
      largest[2] = larger(load(scores + (v + 2) * N::kLanes), largest[2]);
      largest[3] = larger(load(scores + (v + 3) * N::kLanes), largest[3]);
    }
    const Lanes lanes = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
    // A larger score is nothing to sums unless it is very much larger, and moving costs as much as many exponentials.
    if (!any_above<Number>(lanes, sums.m + slack_)) return;
    const Number m = largest_lane<Number>(lanes);
    const Number difference = sums.m - m;
    const Number bounded = difference > N::kSmallestNormalLog ? difference : N::kSmallestNormalLog;
    const Lanes moved = broadcast<Number>(bounded);
    const Lanes shrink = exp_normal<Number>(moved);
    sums.t = shrink * (sums.t + moved * sums.l);
    sums.l = shrink * sums.l;
    sums.m = m;
    const Lanes cell_shrink = exp_any<Number>(broadcast<Number>(difference * task_.sharpness));
    sums.cell_l = cell_shrink * sums.cell_l;
    for (int64_t x = 0; x < task_.column_stride; x += N::kLanes)
      store<Number>(columns + x, load(columns + x) * cell_shrink);
  }

  // Grid rows of one row of cells are added up as whole rows, two at a time where the strip has them, and only their sum
  // is cut into cells.
  template <bool kSharpened>
  void exponentiate(int64_t row, RowSums<Number>& sums, const Number* scores, Number* columns) {
    using N = Numbers<Number>;
    using Lanes = LanesOf<Number>;
    const Lanes m = broadcast<Number>(sums.m), lowest = broadcast<Number>(N::kSmallestNormalLog);
    // sums of this strip alone first: two short sums lose less than one long one
    Lanes l = {}, t = {}, cell_l = {};
    const auto take_lanes = [&](Lanes s) __attribute__((always_inline)) {
      const Lanes x = larger(lowest, s - m);
      const Lanes e = exp_normal<Number>(x);
      l += e;
      t += e * x;
      if constexpr (!kSharpened) return e;
      const Lanes sharp = exp_normal<Number>(larger(lowest, x * task_.sharpness));
      cell_l += sharp;
      return sharp;
    };
    const int64_t width = task_.width;
    int64_t y = place_.first_y, x = place_.first_x, left = place_.keys, cell_row = cell_row_;
    while (left > 0) {
      if (x == 0 && 2 * width <= left && width % N::kLanes == 0 && y + 1 < task_.cell_row_edges[cell_row + 1]) {
        for (int64_t i = 0; i < width; i += N::kLanes) {
          const Lanes upper = take_lanes(load(scores + i)), lower = take_lanes(load(scores + width + i));
          store<Number>(columns + i, load(columns + i) + (upper + lower));
        }
        scores += 2 * width;
        left -= 2 * width;
        y += 2;
        if (y == task_.cell_row_edges[cell_row + 1]) finish_cell_row(row, cell_row++, sums.m, columns);
        continue;
      }
      const int64_t count = width - x < left ? width - x : left;
      Number* to = columns + x;
      int64_t i = 0;
#pragma GCC unroll 2
      for (; i + N::kLanes <= count; i += N::kLanes)
        store<Number>(to + i, load(to + i) + take_lanes(load(scores + i)));
      if (i < count) {  // what lies in the next grid row is masked here, and taken with it
        Lanes rest = broadcast<Number>(-Number(__builtin_inff()));
        for (int64_t lane = 0; i + lane < count; ++lane) rest[lane] = scores[i + lane];
        const Lanes e = take_lanes(rest);
        for (int64_t lane = 0; i + lane < count; ++lane) to[i + lane] += e[lane];
      }
      scores += count;
      left -= count;
      x += count;
      if (x < width) break;
      x = 0;
      if (++y == task_.cell_row_edges[cell_row + 1]) finish_cell_row(row, cell_row++, sums.m, columns);
    }
    next_cell_row_ = cell_row;
    sums.l += l;
    sums.t += t;
    sums.cell_l += kSharpened ? cell_l : l;
  }

  void finish_cell_row(int64_t row, int64_t cell_row, Number m, Number* columns) {
    Number* out = task_.cell_sums + (row * task_.cell_rows + cell_row) * task_.cell_columns;
    switch (task_.width % task_.cell_columns == 0 ? task_.width / task_.cell_columns : 0) {
      case 1: sum_even_cells<1>(columns, task_.cell_columns, out); break;
      case 2: sum_even_cells<2>(columns, task_.cell_columns, out); break;
      case 4: sum_even_cells<4>(columns, task_.cell_columns, out); break;
      default:
        for (int64_t cell = 0; cell < task_.cell_columns; ++cell) {
          Number sum = 0;
          for (int64_t x = task_.cell_column_edges[cell]; x < task_.cell_column_edges[cell + 1]; ++x) sum += columns[x];
          out[cell] = sum;
        }
    }
    task_.cell_maxima[row * task_.cell_row_stride + cell_row] = m;
    for (int64_t x = 0; x < task_.column_stride; x += Numbers<Number>::kLanes)
      store<Number>(columns + x, LanesOf<Number>{});
  }

  // With a size that the compiler knows it adds whole vectors of cells.
  template <int kSize>
  static void sum_even_cells(const Number* __restrict columns, int64_t cells, Number* __restrict out) {
    int64_t cell = 0;
#if VECTOR_BYTES == 32
    if constexpr (sizeof(Number) == sizeof(float)) {
      constexpr int kLanes = Numbers<Number>::kLanes;
      for (; cell + kLanes <= cells; cell += kLanes) {
        LanesOf<Number> sums[kSize];
        for (int i = 0; i < kSize; ++i) sums[i] = load(columns + cell * kSize + i * kLanes);
        for (int left = kSize / 2; left > 0; left /= 2)
          for (int i = 0; i < left; ++i) sums[i] = neighbours_added(sums[2 * i], sums[2 * i + 1]);
        store<Number>(out + cell, sums[0]);
      }
    }
#endif
    for (; cell < cells; ++cell) {
      Number sum = 0;
      for (int i = 0; i < kSize; ++i) sum += columns[cell * kSize + i];
      out[cell] = sum;
    }
  }

  // Not a number where every key was masked: there is no distribution.
  static double log_of_sum(LanesOf<Number> lanes, Number m) {
    double sum = 0;
    for (int i = 0; i < Numbers<Number>::kLanes; ++i) sum += static_cast<double>(lanes[i]);
    if (m == Numbers<Number>::kLowest || sum != sum) return __builtin_nan("");
    return log_normal<double>(broadcast<double>(sum))[0];
  }

  void finish_row(int64_t row) {
    using N = Numbers<Number>;
    using Lanes = LanesOf<Number>;
    const RowSums<Number>& sums = rows_[row];
    finish(Statistics<Number>{broadcast<Number>(sums.m), sums.l, sums.t}, task_.keys, task_.entropy[row],
           task_.lse[row]);
    // (s - m) - log l, not s - lse: what is near the maximum keeps its digits however large the scores are
    const Lanes m = broadcast<Number>(sums.m);
    const Lanes log_mass = broadcast<Number>(static_cast<Number>(log_of_sum(sums.l, sums.m)));
    const int64_t size = task_.window_height * task_.window_width;
    Number* local = task_.local + row * size;
    int64_t o = 0;
    for (; o + N::kLanes <= size; o += N::kLanes)
      store<Number>(local + o, exp_any<Number>((load(local + o) - m) - log_mass));
    if (o < size) {
      Lanes scores = {};
      for (int64_t i = 0; o + i < size; ++i) scores[i] = local[o + i];
      const Lanes e = exp_any<Number>((scores - m) - log_mass);
      for (int64_t i = 0; o + i < size; ++i) local[o + i] = e[i];
    }
    const double cell_log_mass = log_of_sum(sums.cell_l, sums.m);
    task_.cell_lse[row] =
        static_cast<Number>(static_cast<double>(task_.sharpness) * static_cast<double>(sums.m) + cell_log_mass);
    Number* maxima = task_.cell_maxima + row * task_.cell_row_stride;
    // Cells come one by one in the pass, each a cache line of its own: only here are they written out, in order.
    const int64_t first_cell = row * task_.cell_rows * task_.cell_columns;
    const Number* cell_sums = task_.cell_sums + first_cell;
    Number* pooled = task_.pooled + first_cell;
    const Lanes of_cells = broadcast<Number>(static_cast<Number>(cell_log_mass));
    for (int64_t first = 0; first < task_.cell_rows; first += N::kLanes) {
      const Lanes factor = exp_any<Number>((load(maxima + first) - m) * task_.sharpness - of_cells);
      store<Number>(maxima + first, factor);
    }
    for (int64_t cell_row = 0; cell_row < task_.cell_rows; ++cell_row)
      for (int64_t cell = 0; cell < task_.cell_columns; ++cell) *pooled++ = *cell_sums++ * maxima[cell_row];
  }

  const StatisticsTask<Number>& task_;
  StripPlace place_ = {};
  int64_t cell_row_ = 0, next_cell_row_ = 0;
  // By how much scores may be above the maximum that their exponentials are taken under; sharpened ones by nothing.
  const Number slack_;
  RowSums<Number> rows_[kGroupsAtOnce * ROWS_PER_GROUP];
  int64_t y_[kGroupsAtOnce * ROWS_PER_GROUP], x_[kGroupsAtOnce * ROWS_PER_GROUP];
};

template <typename Number>
void attention_statistics(const StatisticsTask<Number>& task) {
  const int64_t groups = (task.rows + ROWS_PER_GROUP - 1) / ROWS_PER_GROUP;
  const int64_t panels = (task.keys + kPanelKeys<Number> - 1) / kPanelKeys<Number>;
  StatisticsRows<Number> rows(task);
  Strip<Number> strip;
  for (int64_t panel = 0; panel < panels; panel += kPanelsAtOnce) {
    const int64_t num_panels = panels - panel < kPanelsAtOnce ? panels - panel : kPanelsAtOnce;
    const int64_t strip_keys = num_panels * kPanelKeys<Number>, first_key = panel * kPanelKeys<Number>;
    const int64_t keys = task.keys - first_key < strip_keys ? task.keys - first_key : strip_keys;
    rows.move_to(first_key, keys);
    for (int64_t group = 0; group < groups; ++group) {
      score_strip(task.q + group * task.head_size * ROWS_PER_GROUP, task.k + panel * task.head_size * kPanelKeys<Number>,
                  num_panels, task.head_size, strip);
      const int64_t first = group * ROWS_PER_GROUP;
      const int64_t end = first + ROWS_PER_GROUP < task.rows ? first + ROWS_PER_GROUP : task.rows;
      for (int64_t row = first; row < end; ++row) {
        Number* scores = strip.scores[row - first];
        for (int64_t key = keys; key < strip_keys; ++key) scores[key] = -__builtin_inff();  // padding
        rows.look_at(row, scores, strip_keys / Numbers<Number>::kLanes);
      }
      for (int64_t row = first; row < end; ++row) rows.take(row, strip.scores[row - first]);
    }
  }
  rows.finish_rows();
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
