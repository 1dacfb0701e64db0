#pragma once

// The interface between the attention ops (tensors, dtypes, threads) and their inner kernels (packed blocks of one
// number type), which are compiled once per instruction set.
//
// Packed queries: groups of `rows` query rows, already multiplied by the scale: q[group][channel][row].
// Packed keys:    panels of `keys` keys: k[panel][channel][key]. Both are padded with zeros up to whole groups and
// panels, so that a kernel never meets a remainder; what it computes for the padding is never read.

#include <cstdint>

namespace nerve_kernels::cpu {

// Panels whose scores are computed for one group before they are reduced: few enough for the scores to stay in L1.
constexpr int64_t kPanelsAtOnce = 8;

// Groups that share each block of keys while it is in L2. A task of the entropy kernel is at most this many.
constexpr int64_t kGroupsAtOnce = 8;

// Sizes of the register tile of one kernel.
struct TileSizes {
  int64_t rows, keys;
  int64_t keys_at_once() const { return keys * kPanelsAtOnce; }
  int64_t rows_at_once() const { return rows * kGroupsAtOnce; }
};

// Entropy and log-sum-exp of up to kGroupsAtOnce groups of rows over all keys.
template <typename Number>
struct EntropyTask {
  const Number* q;  // packed groups
  const Number* k;  // packed panels
  int64_t rows, keys, head_size;
  Number* entropy;  // (rows)
  Number* lse;      // (rows)
};

// sums[row][key] += weight * exp(score - lse[row]) for one group of rows and `panels` <= kPanelsAtOnce panels.
template <typename Number>
struct ProbabilityTask {
  const Number* q;  // one packed group
  const Number* k;  // the first packed panel
  int64_t panels, head_size;
  const Number* lse;  // (rows of a group)
  Number weight;
  Number* sums;  // (rows of a group, keys_at_once)
};

// One grid row of queries against one grid row of keys, for all horizontal offsets of a window:
// sums[dx][x] += weight * exp(q[:, x] . k[:, x + dx] - lse[x]). Channels come first, so that lanes are neighbours.
template <typename Number>
struct WindowTask {
  const Number* q;           // (head_size, width_padded), multiplied by the scale
  const Number* k;           // (head_size, key_stride): x + dx is the position from the window's left edge
  const Number* lse;         // (width_padded)
  int64_t width_padded;      // a multiple of `quantum`
  int64_t key_stride;        // at least width_padded + window_width_padded
  int64_t window_width_padded;  // a multiple of kOffsetsAtOnce
  int64_t head_size;
  Number weight;
  Number* sums;  // (window_width_padded, width_padded)
};

constexpr int64_t kOffsetsAtOnce = 4;

// The kernels for one number type.
template <typename Number>
struct AttentionFunctions {
  TileSizes tile;
  int64_t quantum;  // numbers per vector: what a WindowTask's widths are padded to
  void (*entropy)(const EntropyTask<Number>&);
  void (*add_probabilities)(const ProbabilityTask<Number>&);
  void (*add_window)(const WindowTask<Number>&);
  // -sum of a * log(a) over one row of a map; 0 * log 0 is 0
  Number (*map_row_entropy)(const Number* row, int64_t keys);
};

struct AttentionKernels {
  const char* instruction_set;
  AttentionFunctions<float> float32;
  AttentionFunctions<double> float64;

  template <typename Number>
  const AttentionFunctions<Number>& of() const {
    if constexpr (sizeof(Number) == sizeof(float)) return float32;
    else return float64;
  }
};

// The best copy this processor runs.
const AttentionKernels& best_attention_kernels();

extern const AttentionKernels attention_portable;
#if defined(__x86_64__)
extern const AttentionKernels attention_avx2;
extern const AttentionKernels attention_avx512;
#endif

}  // namespace nerve_kernels::cpu
