// The gradients of queries and keys from those of what is made of attention rows; see instruction_set.h. On
// attention_statistics.h and block_product.h.
//
// Scores are computed once more and become their own gradients in place, strip by strip; two products take these to
// queries and keys. Every sum has one order for its number, given the first row of each task.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

template <typename Number>
class GradientRows {
 public:
  explicit GradientRows(const AttentionGradientTask<Number>& task) : task_(task) {
    for (int64_t row = 0; row < task.rows; ++row) task.row_sums[row] = 0;
  }

  void move_to(int64_t first_key, int64_t keys) {
    place_ = StripPlace::of(first_key, keys, task_.width);
    cell_row_ = next_cell_row_;
  }

  // One row of a strip: its scores become their gradients. Strips come in the order of keys, each with all its rows.
  void take(int64_t row, Number* scores) {
    const auto for_window = [&](auto run) {
      const int64_t token = task_.first_row + row;
      if (task_.local != nullptr) for_window_runs(task_, place_, token / task_.width, token % task_.width, run);
    };
    Number window_scores[kStripKeys<Number>];
    for_window([&](int64_t key, int64_t count, int64_t) {
      for (int64_t i = 0; i < count; ++i) window_scores[key + i] = scores[key + i];
    });
    if (task_.pooled == nullptr)
      differentiate<false, false>(row, scores);
    else if (task_.sharpness == Number(1))
      differentiate<true, false>(row, scores);
    else
      differentiate<true, true>(row, scores);
    for_window([&](int64_t key, int64_t count, int64_t place) {
      using N = Numbers<Number>;
      const Number* gradient = task_.local + row * task_.window_height * task_.window_width + place;
      for (int64_t first = 0; first < count; first += N::kLanes) {
        const int64_t lanes = count - first < N::kLanes ? count - first : N::kLanes;
        LanesOf<Number> x = {};
        for (int64_t i = 0; i < lanes; ++i) x[i] = window_scores[key + first + i] - task_.lse[row];
        const LanesOf<Number> p = exp_any<Number>(x);
        for (int64_t i = 0; i < lanes; ++i) {
          scores[key + first + i] += p[i] * gradient[first + i];
          task_.row_sums[row] += p[i] * gradient[first + i];
        }
      }
    });
  }

 private:
  template <bool kPooled, bool kSharpened>
  void differentiate(int64_t row, Number* scores) {
    using N = Numbers<Number>;
    using Lanes = LanesOf<Number>;
    const Lanes lse = broadcast<Number>(task_.lse[row]), lowest = broadcast<Number>(N::kSmallestLog);
    const Lanes a = broadcast<Number>(task_.a[row]), b = broadcast<Number>(task_.b[row]);
    const Lanes cell_lse = broadcast<Number>(kSharpened ? task_.cell_lse[row] : Number(0));
    const Lanes c = broadcast<Number>(kSharpened ? task_.c[row] : Number(0));
    Lanes sum = {};
    const auto differentiate_lanes = [&](Lanes s, Lanes of_cell) __attribute__((always_inline)) {
      const Lanes x = larger(lowest, s - lse);  // a masked key has p = 0 and must give 0, not 0 * -inf
      const Lanes p = exp_any<Number>(x);
      if constexpr (!kSharpened) return p * (a + b * x + of_cell);
      const Lanes sharp = exp_any<Number>(s * task_.sharpness - cell_lse) * task_.sharpness;
      return p * (a + b * x) + sharp * (c + of_cell);
    };
    const auto take_run = [&](int64_t count, const Number* of_cells) __attribute__((always_inline)) {
      int64_t i = 0;
#pragma GCC unroll 2
      for (; i + N::kLanes <= count; i += N::kLanes) {
        const Lanes gradient = differentiate_lanes(load(scores + i), kPooled ? load(of_cells + i) : Lanes{});
        sum += gradient;
        store<Number>(scores + i, gradient);
      }
      if (i < count) {
        Lanes rest = {}, of_cell = {};
        for (int64_t lane = 0; i + lane < count; ++lane) {
          rest[lane] = scores[i + lane];
          if (kPooled) of_cell[lane] = of_cells[i + lane];
        }
        const Lanes gradient = differentiate_lanes(rest, of_cell);
        for (int64_t lane = 0; i + lane < count; ++lane) {
          scores[i + lane] = gradient[lane];
          task_.row_sums[row] += gradient[lane];
        }
      }
      scores += count;
    };
    if constexpr (!kPooled) {
      take_run(place_.keys, nullptr);
    } else {
      int64_t y = place_.first_y, x = place_.first_x, left = place_.keys, cell_row = cell_row_;
      while (left > 0) {
        const int64_t count = task_.width - x < left ? task_.width - x : left;
        const bool is_new = x == 0 && y == task_.cell_row_edges[cell_row];
        take_run(count, columns_of(row, cell_row, is_new) + x);
        left -= count;
        x += count;
        if (x < task_.width) break;
        x = 0;
        cell_row += ++y == task_.cell_row_edges[cell_row + 1];
      }
      next_cell_row_ = cell_row;
    }
    task_.row_sums[row] += sum_lanes<Number>(sum);
  }

  // The gradients of a row of cells, for each position along the grid's width.
  const Number* columns_of(int64_t row, int64_t cell_row, bool is_new) {
    const Number* cells = task_.pooled + (row * task_.cell_rows + cell_row) * task_.cell_columns;
    if (task_.cell_columns == task_.width) return cells;
    Number* columns = task_.columns + row * task_.width;
    if (!is_new) return columns;
    switch (task_.width % task_.cell_columns == 0 ? task_.width / task_.cell_columns : 0) {
      case 2: spread_even_cells<2>(cells, task_.cell_columns, columns); break;
      case 4: spread_even_cells<4>(cells, task_.cell_columns, columns); break;
      default:
        for (int64_t cell = 0; cell < task_.cell_columns; ++cell)
          for (int64_t x = task_.cell_column_edges[cell]; x < task_.cell_column_edges[cell + 1]; ++x)
            columns[x] = cells[cell];
    }
    return columns;
  }

  // With a size that the compiler knows it writes whole vectors.
  template <int kSize>
  static void spread_even_cells(const Number* __restrict cells, int64_t count, Number* __restrict columns) {
    for (int64_t cell = 0; cell < count; ++cell)
      for (int i = 0; i < kSize; ++i) columns[cell * kSize + i] = cells[cell];
  }

  const AttentionGradientTask<Number>& task_;
  StripPlace place_ = {};
  int64_t cell_row_ = 0, next_cell_row_ = 0;
};

template <typename Number>
void attention_gradient(const AttentionGradientTask<Number>& task) {
  const int64_t groups = (task.rows + ROWS_PER_GROUP - 1) / ROWS_PER_GROUP;
  const int64_t panels = (task.keys + kPanelKeys<Number> - 1) / kPanelKeys<Number>;
  GradientRows<Number> rows(task);
  Strip<Number> strips[kGroupsAtOnce];  // of which the rows lie one after the other
  static_assert(sizeof(strips) == sizeof(Number) * kGroupsAtOnce * ROWS_PER_GROUP * kStripKeys<Number>);
  const Number* gradients = reinterpret_cast<const Number*>(strips);
  for (int64_t panel = 0; panel < panels; panel += kPanelsAtOnce) {
    const int64_t num_panels = panels - panel < kPanelsAtOnce ? panels - panel : kPanelsAtOnce;
    const int64_t first_key = panel * kPanelKeys<Number>, strip_keys = num_panels * kPanelKeys<Number>;
    const int64_t keys = task.keys - first_key < strip_keys ? task.keys - first_key : strip_keys;
    rows.move_to(first_key, keys);
    for (int64_t group = 0; group < groups; ++group) {
      score_strip(task.q + group * task.head_size * ROWS_PER_GROUP, task.k + panel * task.head_size * kPanelKeys<Number>,
                  num_panels, task.head_size, strips[group]);
      const int64_t first = group * ROWS_PER_GROUP;
      for (int64_t row = first; row < task.rows && row < first + ROWS_PER_GROUP; ++row)
        rows.take(row, strips[group].scores[row - first]);
    }
    BlockProduct<Number> of_queries = {};
    of_queries.a = gradients;
    of_queries.a_row_stride = kStripKeys<Number>;
    of_queries.a_depth_stride = 1;
    of_queries.b = task.k_rows + first_key * task.stride;
    of_queries.out = task.grad_q;
    of_queries.stride = of_queries.labels = task.stride;
    of_queries.rows = task.rows;
    of_queries.depth = keys;
    of_queries.scale = task.scale;
    block_product(of_queries);
    BlockProduct<Number> of_keys = of_queries;
    of_keys.a_row_stride = 1;
    of_keys.a_depth_stride = kStripKeys<Number>;
    of_keys.b = task.q_rows;
    of_keys.out = task.grad_k + first_key * task.stride;
    of_keys.rows = keys;
    of_keys.depth = task.rows;
    of_keys.scale = 1;
    block_product(of_keys);
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
