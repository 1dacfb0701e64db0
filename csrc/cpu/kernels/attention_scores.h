// The score microkernel and what is summed over its scores; see instruction_set.h.
//
// Every sum has a fixed order for its row, whatever thread or group computes it.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

constexpr int kVectorsPerPanel = 2;

// 1 KiB of scores for each row: enough for what is done once a strip to cost little, few enough to stay in L1.
constexpr int kPanelsAtOnce = 1024 / (kVectorsPerPanel * VECTOR_BYTES);

template <typename Number>
constexpr int kPanelKeys = kVectorsPerPanel * Numbers<Number>::kLanes;

template <typename Number>
constexpr int kStripKeys = kPanelKeys<Number> * kPanelsAtOnce;

// The scores of one group of rows with up to kPanelsAtOnce panels: small enough to stay in L1.
template <typename Number>
struct alignas(VECTOR_BYTES) Strip {
  Number scores[ROWS_PER_GROUP][kStripKeys<Number>];
};

// One register tile: all scores of a group with a panel.
template <typename Number>
inline __attribute__((always_inline)) void score_tile(const Number* q, const Number* panel, int64_t head_size,
                                                         Number* out) {
  using Lanes = LanesOf<Number>;
  constexpr int kLanes = Numbers<Number>::kLanes;
  Lanes sums[ROWS_PER_GROUP][kVectorsPerPanel] = {};
#pragma GCC unroll 4
  for (int64_t channel = 0; channel < head_size; ++channel) {
    Lanes keys[kVectorsPerPanel];
#pragma GCC unroll 4
    for (int v = 0; v < kVectorsPerPanel; ++v) keys[v] = load(panel + v * kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS_PER_GROUP; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectorsPerPanel; ++v) sums[row][v] += keys[v] * q[row];
    }
    q += ROWS_PER_GROUP;
    panel += kVectorsPerPanel * kLanes;
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS_PER_GROUP; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectorsPerPanel; ++v)
      store(out + row * kStripKeys<Number> + v * kLanes, sums[row][v]);
  }
}

template <typename Number>
void score_strip(const Number* q, const Number* panels, int64_t num_panels, int64_t head_size,
                    Strip<Number>& strip) {
  for (int64_t p = 0; p < num_panels; ++p)
    score_tile(q, panels + p * head_size * kPanelKeys<Number>, head_size,
                  &strip.scores[0][p * kPanelKeys<Number>]);
}

// What is known of a row so far, each lane for the keys it has seen: m = max s, l = sum e^(s-m), t = sum e^(s-m) (s-m).
// A lane that has seen no key yet has the lowest of all numbers as its maximum: the first real score replaces it, and
// what the lane held by then (l = t = 0, or dust from masked keys) is multiplied by nearly nothing.
template <typename Number>
struct Statistics {
  LanesOf<Number> m, l, t;
};

template <typename Number>
inline __attribute__((always_inline)) void update(Statistics<Number>& row, const Number* scores, int64_t vectors) {
  using N = Numbers<Number>;
  using Lanes = LanesOf<Number>;
  const Lanes lowest_difference = broadcast<Number>(N::kSmallestNormalLog);
  // Two maxima at a time, as each waits for the one before. What is not a number is passed over and caught by the sum.
  static_assert(kVectorsPerPanel % 2 == 0);
  Lanes m = row.m, other = row.m;
  for (int64_t v = 0; v < vectors; v += 2) {
    m = larger(load(scores + v * N::kLanes), m);
    other = larger(load(scores + (v + 1) * N::kLanes), other);
  }
  m = larger(m, other);
  const Lanes moved = larger(lowest_difference, row.m - m);
  const Lanes shrink = exp_normal<Number>(moved);
  // sums of this strip alone first: two short sums lose less than one long one
  Lanes l = {}, t = {};
#pragma GCC unroll 2
  for (int64_t v = 0; v < vectors; ++v) {
    const Lanes x = larger(lowest_difference, load(scores + v * N::kLanes) - m);
    const Lanes e = exp_normal<Number>(x);
    l += e;
    t += e * x;
  }
  row.t = shrink * (row.t + moved * row.l) + t;
  row.l = shrink * row.l + l;
  row.m = m;
}

// Brings the lanes of a row together: entropy = log l - t / l, lse = m + log l. A masked or very far key has added up
// to kDust to the entropy instead of nothing: what is not above that is 0.
template <typename Number>
void finish(const Statistics<Number>& row, int64_t keys, Number& entropy, Number& lse) {
  using N = Numbers<Number>;
  using Lanes = LanesOf<Number>;
  Number m = N::kLowest;
  for (int i = 0; i < N::kLanes; ++i) m = row.m[i] > m ? row.m[i] : m;
  const Lanes moved = larger(broadcast<Number>(N::kSmallestLog), row.m - m);
  const Lanes shrink = exp_any<Number>(moved);
  double l = 0, t = 0;
  for (int i = 0; i < N::kLanes; ++i) {
    l += static_cast<double>(shrink[i]) * static_cast<double>(row.l[i]);
    t += static_cast<double>(shrink[i]) *
        (static_cast<double>(row.t[i]) + static_cast<double>(moved[i]) * static_cast<double>(row.l[i]));
  }
  if (m == N::kLowest) l = t = __builtin_nan("");  // every key was masked: there is no distribution
  const double log_mass = l == l ? log_normal<double>(broadcast<double>(l))[0] : l;
  const double centred = log_mass - t / l;
  const double dust = 2 * N::kDust * static_cast<double>(keys + N::kLanes);
  entropy = static_cast<Number>(centred < dust ? 0 : centred);
  lse = static_cast<Number>(static_cast<double>(m) + log_mass);
}

template <typename Number>
void entropy(const EntropyTask<Number>& task) {
  using N = Numbers<Number>;
  const int64_t groups = (task.rows + ROWS_PER_GROUP - 1) / ROWS_PER_GROUP;
  const int64_t panels = (task.keys + kPanelKeys<Number> - 1) / kPanelKeys<Number>;
  Statistics<Number> statistics[kGroupsAtOnce][ROWS_PER_GROUP];
  for (int64_t group = 0; group < groups; ++group)
    for (int row = 0; row < ROWS_PER_GROUP; ++row)
      statistics[group][row] = {broadcast<Number>(N::kLowest), LanesOf<Number>{}, LanesOf<Number>{}};

  Strip<Number> strip;
  for (int64_t panel = 0; panel < panels; panel += kPanelsAtOnce) {
    const int64_t num_panels = panels - panel < kPanelsAtOnce ? panels - panel : kPanelsAtOnce;
    const int64_t strip_keys = num_panels * kPanelKeys<Number>;
    const int64_t keys_left = task.keys - panel * kPanelKeys<Number>;
    for (int64_t group = 0; group < groups; ++group) {
      score_strip(task.q + group * task.head_size * ROWS_PER_GROUP,
                     task.k + panel * task.head_size * kPanelKeys<Number>, num_panels, task.head_size, strip);
      for (int row = 0; row < ROWS_PER_GROUP; ++row) {
        for (int64_t key = keys_left; key < strip_keys; ++key) strip.scores[row][key] = -__builtin_inff();  // padding
        update(statistics[group][row], strip.scores[row], strip_keys / N::kLanes);
      }
    }
  }
  for (int64_t row = 0; row < task.rows; ++row)
    finish(statistics[row / ROWS_PER_GROUP][row % ROWS_PER_GROUP], task.keys, task.entropy[row], task.lse[row]);
}

template <typename Number>
void add_probabilities(const ProbabilityTask<Number>& task) {
  using Lanes = LanesOf<Number>;
  constexpr int kLanes = Numbers<Number>::kLanes;
  Strip<Number> strip;
  score_strip(task.q, task.k, task.panels, task.head_size, strip);
  const int64_t keys = task.panels * kPanelKeys<Number>;
  for (int row = 0; row < ROWS_PER_GROUP; ++row) {
    const Lanes lse = broadcast<Number>(task.lse[row]), weight = broadcast<Number>(task.weight);
    Number* sums = task.sums + row * kStripKeys<Number>;
    for (int64_t key = 0; key < keys; key += kLanes) {
      const Lanes p = exp_any<Number>(load(&strip.scores[row][key]) - lse);
      store<Number>(sums + key, load(sums + key) + p * weight);
    }
  }
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
