#pragma once

// What the kernels of pixels are given; see kernels.h.

#include <cstdint>

namespace nerve_kernels::cpu {

// So many neighbours in a row, of the first row's tokens, of the second's, or of both.
struct StencilSegment {
  int64_t count;
  bool of_first, of_second;
};

// Some tokens of one or two grid rows of a product with weights at any offsets, for planes of labels:
// out[label, x] = restart[label, x] + sum over neighbours of weight[x] * p[label, x + place].
template <typename Number>
struct StencilRows {
  // Of each row, for vectors of tokens (of a single row, for two vectors at a time): (vectors, neighbours, tokens).
  const Number* weights[2];
  const int64_t* places;  // how far each neighbour lies from the first row's token in a plane, in the order of segments
  const StencilSegment* segments;
  int64_t num_segments;
  const Number* p;        // the first token in the first label's plane; read by whole vectors
  const Number* restart;  // likewise; or null
  int64_t plane_stride, row_stride;  // of p and restart
  int64_t labels, tokens, rows;
  Number* out;  // only `tokens` of each label and row are written
  int64_t out_stride, out_row_stride;
};

// What the weight of a neighbour is: PAMR's contrast, or a power of e of the distance of colours, or of its square.
enum class PixelKind : int64_t { kContrast = 0, kDistance = 1, kSquare = 2 };

constexpr int64_t kPixelsAtOnce = 64;

// The weights of some pixels' neighbours, at most kPixelsAtOnce side by side.
template <typename Number>
struct PixelRow {
  PixelKind kind;
  const Number* image;  // the first pixel in the first channel's plane; read by whole vectors
  int64_t channels, plane_stride;
  const int64_t* places;         // (offsets): how far a neighbour lies from its pixel in a plane
  const int64_t *begin, *end;    // (offsets): the pixels whose neighbour is on the grid; the others' weight is 0
  const Number* decay;           // (offsets): what an offset adds to the exponent of distances
  int64_t offsets, pixels;
  int64_t centres;      // how often the pixel is among the samples of the deviation
  Number scale;         // of distances
  bool divide;          // weights by their sum
  const Number* roots;  // where not null: what a weight is multiplied with, its pixel's and its neighbour's
  Number* values;       // (offsets, kPixelsAtOnce): the result
  Number* sums;         // (kPixelsAtOnce): of the weights, as they are before they are divided or multiplied
};

// One side of an image: pixel i lies between the tokens first[i] and second[i]. Weights are followed by room for
// kWeightPadding more, so that whole vectors may be read at any pixel.
template <typename Number>
struct BilinearSide {
  int64_t tokens, pixels;
  int64_t *first, *second;
  Number *first_weight, *second_weight;
};

constexpr int64_t kWeightPadding = 16;

// Some rows of pixels of one image, all of them between the same two rows of tokens: out[y, x] is the first of the best
// labels, or `fallback` where the best is below `threshold`.
template <typename Number>
struct BestLabelRows {
  const Number* tokens;  // (h, w, labels)
  int64_t labels;
  BilinearSide<Number> rows, columns;
  int64_t row_begin, row_end;
  Number threshold;
  int64_t fallback;
  int64_t* out;  // (height, width)
  // for the kernel to write to
  Number* upper;        // (labels): bounds of each label's values between four tokens
  Number* lower;        // (labels)
  Number* corners;      // (labels, 4): values at the four tokens of the labels that may be the best between them
  int64_t* candidates;  // (labels): which ones these are
};

}  // namespace nerve_kernels::cpu
