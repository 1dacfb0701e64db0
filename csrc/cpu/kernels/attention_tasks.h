#pragma once

// What the kernels of attention are given; see kernels.h.
//
// Packed queries: groups of `rows` query rows, already multiplied by the scale: q[group][channel][row].
// Packed keys:    panels of `keys` keys: k[panel][channel][key]. Both are padded with zeros up to whole groups and
// panels, so that a kernel never meets a remainder; what it computes for the padding is never read.

#include <cstdint>

namespace nerve_kernels::cpu {

// Groups that share each block of keys while it is in L2. A task of the entropy kernel is at most this many.
constexpr int64_t kGroupsAtOnce = 8;

// Sizes of the register tile of one kernel.
struct TileSizes {
  int64_t rows, keys;
  int64_t panels_at_once;  // whose scores are computed for one group before they are reduced
  int64_t keys_at_once() const { return keys * panels_at_once; }
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

// What a row's attention amounts to over all keys, in its window and in every cell, of up to kGroupsAtOnce groups of
// rows. Queries and keys lie on one grid.
template <typename Number>
struct StatisticsTask {
  const Number* q;  // packed groups
  const Number* k;  // packed panels
  int64_t rows, keys, head_size;
  int64_t first_row;  // the token that is the first row
  int64_t width, window_height, window_width;
  int64_t cell_rows, cell_columns;
  const int64_t *cell_row_edges, *cell_column_edges;
  Number sharpness;     // the cells are those of softmax(sharpness * scores)
  Number* entropy;      // (rows)
  Number* lse;          // (rows)
  Number* cell_lse;     // (rows)
  Number* local;        // (rows, window_height * window_width); 0 outside the grid
  Number* pooled;       // (rows, cell_rows * cell_columns)
  Number* columns;      // for the kernel: (rows, column_stride >= width, a multiple of the lanes), zeros before and after
  Number* cell_sums;    // for the kernel: (rows, cell_rows * cell_columns), in cache unlike the result
  Number* cell_maxima;  // for the kernel: (rows, cell_row_stride >= cell_rows, a multiple of the lanes)
  int64_t column_stride, cell_row_stride;
};

// The gradients of up to kGroupsAtOnce groups of queries and of all keys, from those of what is made of the attention
// p = exp(score - lse) of each row: its entropy and lse, its window, and its cells, which are those of
// p' = exp(sharpness * score - cell_lse), or of p where the sharpness is 1. With x = score - lse
//   d score = p * (a + b * x + local) + sharpness * p' * (c + pooled),
//   grad_q[row] = scale * sum over keys of d score * k, grad_k[key] += sum over rows of d score * scale * q.
template <typename Number>
struct AttentionGradientTask {
  const Number* q;       // packed groups
  const Number* k;       // packed panels
  const Number* q_rows;  // (rows, stride): the same, times the scale too, row by row, padded with zeros
  const Number* k_rows;  // (keys, stride)
  int64_t rows, keys, head_size;
  int64_t stride;     // a multiple of the quantum
  int64_t first_row;  // the token that is the first row
  int64_t width, window_height, window_width;
  int64_t cell_rows, cell_columns;
  const int64_t *cell_row_edges, *cell_column_edges;
  Number scale, sharpness;
  const Number *lse, *a, *b;      // (rows)
  const Number *cell_lse, *c;     // (rows); looked at where the sharpness is not 1
  const Number* local;            // (rows, window_height * window_width), or null; what lies off the grid is not read
  const Number* pooled;           // (rows, cell_rows * cell_columns), or null
  Number* columns;                // for the kernel: (rows, width)
  Number* grad_q;                 // (rows, stride), zeros before
  Number* grad_k;                 // (keys, stride), added to
  Number* row_sums;               // (rows): the sum of each row's d score
};

// sums[row][key] += weight * exp(score - lse[row]) for one group of rows and `panels` <= panels_at_once panels.
template <typename Number>
struct ProbabilityTask {
  const Number* q;  // one packed group
  const Number* k;  // the first packed panel
  int64_t panels, head_size;
  const Number* lse;  // (rows of a group)
  Number weight;
  Number* sums;  // (rows of a group, keys_at_once)
};

// Of up to kGroupsAtOnce groups of rows over all keys, the log-probabilities x = score - lse that are not below their
// key's bound: x >= max(least, drop + the largest x of any row so far).
template <typename Number>
struct AttentionListTask {
  const Number* q;  // packed groups
  const Number* k;  // packed panels
  int64_t rows, keys, head_size;
  Number least, drop;
  Number* maxima;      // (keys padded to whole panels): the largest x so far, moved on
  Number* scores;      // for the kernel: (groups * rows of a group, keys padded to whole strips), 64-byte aligned
  Number* values;      // (rows, list_stride): x of each row in ascending order of keys; null: maxima only
  int32_t* list_keys;  // (rows, list_stride): their keys; list_stride is at least the padded keys and a vector more
  int64_t list_stride;
  int64_t* counts;     // (rows): how many; -1 where lse is not a number
};

// out = sum over the list of share * p[key] / (sum of shares + epsilon), share = exp(x) * shares[key], where that is
// not below the threshold. The list is overwritten.
template <typename Number>
struct SharpenedRow {
  Number* values;
  int32_t* list_keys;
  int64_t count;
  const Number* shares;  // (keys)
  Number threshold, epsilon;
  const Number* p;  // (keys, stride)
  Number* out;      // (stride)
  int64_t stride;   // a multiple of the lanes of a vector
};

// One grid row of queries against one grid row of keys, for all horizontal offsets of a window:
// sums[dx][x] += weight * exp(q[:, x] . k[:, x + dx] - lse[x]). Channels come first, so that lanes are neighbours.
template <typename Number>
struct WindowTask {
  const Number* q;              // (head_size, width_padded), multiplied by the scale
  const Number* k;              // (head_size, key_stride): x + dx is the position from the window's left edge
  const Number* lse;            // (width_padded)
  int64_t width_padded;         // a multiple of the lanes of a vector
  int64_t key_stride;           // at least width_padded + window_width_padded
  int64_t window_width_padded;  // a multiple of kOffsetsAtOnce
  int64_t head_size;
  Number weight;
  Number* sums;  // (window_width_padded, width_padded)
};

constexpr int64_t kOffsetsAtOnce = 4;

}  // namespace nerve_kernels::cpu
