// Window scores and the entropy of explicit maps; see instruction_set.h.

namespace nerve_kernels::cpu::INSTRUCTION_SET {

// kOffsetsAtOnce horizontal offsets share each loaded query: direct dot products, nothing outside the window.
template <typename Number>
void add_window(const WindowTask<Number>& task) {
  using Lanes = LanesOf<Number>;
  constexpr int kLanes = Numbers<Number>::kLanes;
  const Lanes weight = broadcast<Number>(task.weight);
  for (int64_t x = 0; x < task.width_padded; x += kLanes) {
    const Lanes lse = load(task.lse + x);
    for (int64_t dx = 0; dx < task.window_width_padded; dx += kOffsetsAtOnce) {
      Lanes scores[kOffsetsAtOnce] = {};
      const Number *q = task.q + x, *k = task.k + x + dx;
      for (int64_t channel = 0; channel < task.head_size; ++channel) {
        const Lanes query = load(q);
#pragma GCC unroll 8
        for (int o = 0; o < kOffsetsAtOnce; ++o) scores[o] += query * load(k + o);
        q += task.width_padded;
        k += task.key_stride;
      }
#pragma GCC unroll 8
      for (int o = 0; o < kOffsetsAtOnce; ++o) {
        Number* sums = task.sums + (dx + o) * task.width_padded + x;
        store<Number>(sums, load(sums) + exp_any<Number>(scores[o] - lse) * weight);
      }
    }
  }
}

template <typename Number>
inline __attribute__((always_inline)) LanesOf<Number> entropy_terms(LanesOf<Number> a) {
  using Lanes = LanesOf<Number>;
  using N = Numbers<Number>;
  // a denormal is multiplied into the normal range, and the logarithm of the factor taken off again
  const Number factor = sizeof(Number) == 4 ? Number(16777216) : Number(18014398509481984);
  const Number log_factor = Number(0.6931471805599453) * (sizeof(Number) == 4 ? 24 : 54);
  const Number smallest_normal = sizeof(Number) == 4 ? Number(1.1754943508222875e-38) : Number(2.2250738585072014e-308);
  const Lanes tiny = a < smallest_normal ? a * factor : a;
  const Lanes log = log_normal<Number>(tiny) - (a < smallest_normal ? broadcast<Number>(log_factor) : Lanes{});
  const Lanes terms = -a * log;
  const Lanes at_zero = a == Number(0) ? Lanes{} : terms;
  const Lanes infinite = broadcast<Number>(Number(__builtin_inff()));
  const Lanes above = a == infinite ? -infinite : at_zero;
  const Lanes below = a < Number(0) ? -infinite : above;  // as torch.special.entr has it
  (void)N::kLanes;
  return a != a ? a : below;
}

template <typename Number>
Number map_row_entropy(const Number* row, int64_t keys) {
  using Lanes = LanesOf<Number>;
  constexpr int64_t kLanes = Numbers<Number>::kLanes;
  constexpr int64_t kTermsAtOnce = 64 * kLanes;
  double total = 0;
  for (int64_t begin = 0; begin < keys; begin += kTermsAtOnce) {
    const int64_t end = begin + kTermsAtOnce < keys ? begin + kTermsAtOnce : keys;
    Lanes sums = {};
    int64_t key = begin;
    for (; key + kLanes <= end; key += kLanes) sums += entropy_terms<Number>(load(row + key));
    Lanes rest = {};  // zeros add nothing
    for (int i = 0; key + i < end; ++i) rest[i] = row[key + i];
    sums += entropy_terms<Number>(rest);
    for (int i = 0; i < kLanes; ++i) total += static_cast<double>(sums[i]);
  }
  return static_cast<Number>(total);
}

}  // namespace nerve_kernels::cpu::INSTRUCTION_SET
