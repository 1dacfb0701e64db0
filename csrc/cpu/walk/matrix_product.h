#pragma once

// Products of what S is stored as, in any dtype and strides, with packed labels: cut into blocks that fit the caches.

#include <cstdint>

#include "walk_problem.h"

namespace nerve_kernels::cpu {

constexpr int64_t kRowsAtOnce = 64;  // rows of a block: they share each block of labels while it is in L1

// `columns` numbers of `rows` rows from (row, column) on, as `Number`, rows of `out` out_stride apart.
template <typename Number>
void convert_block(const MatrixBatch& matrix, int64_t image, int64_t row, int64_t rows, int64_t column, int64_t columns,
                   Number* out, int64_t out_stride);

// out[x] += scale * local_share * (S_local P)[x] for the tokens x of grid row y. `p` is P of the image; its rows and
// those of `out` are `stride` numbers apart.
template <typename Number>
void add_window_row(const WalkProblem& problem, int64_t image, int64_t y, const Number* p, int64_t stride, Number scale,
                    Number* out);

// out[row] += scale * sum over k < depth of matrix[first_row + row, first_k + k] * b[k]; rows of b and out are `stride`
// numbers apart and all of them computed. Blocks of k are summed apart and then added, in order.
template <typename Number>
void add_product(const MatrixBatch& matrix, int64_t image, int64_t first_row, int64_t num_rows, int64_t first_k,
                 int64_t depth, const Number* b, int64_t stride, Number scale, Number* out);

}  // namespace nerve_kernels::cpu
