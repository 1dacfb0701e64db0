#pragma once

// One walk as the kernel is given it, and where its parts lie in shared memory; the same on host and device.

#include <cstdint>

#if defined(__CUDACC__)
#include <cooperative_groups.h>
#include <cuda/atomic>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
#if !defined(DYNAMIC_SHARED_MEMORY)
#define DYNAMIC_SHARED_MEMORY(name) extern __shared__ float4 name[]
#endif

namespace nerve_kernels::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTokensPerLane = 4;   // neighbours in a row of the grid, a quad
constexpr int kTokensPerWarp = 32;  // 8 quads
constexpr int kLabelLanes = 4;      // lanes side by side over the labels: 8 quads × 4 = 32 lanes
constexpr int kPad = 4;             // keeps rows of transposed tiles 16-byte aligned and off each other's banks
constexpr int kArrivals = 32;       // numbers from one team's counter to the next: each has a line of L2 to itself

enum class Number : int { kFloat32, kFloat16, kBFloat16 };

// The part of a cell that lies in this block's tile, in the tile's coordinates.
struct Piece {
  int16_t top, bottom, left, right;
  int slot;     // where its sum is published
  float share;  // 1 / tokens of the whole cell
};

// Where the pieces of a cell are published: `rows` × `columns` slots from `slot` on.
struct Cell {
  int slot;
  int16_t rows, columns;
};

struct Walk {
  // inputs, contiguous: seeds (batch, N, labels), values (batch or 1, N, kh*kw), u (batch or 1, N, cells)
  const void *seeds, *values, *u;
  void* result;  // (batch, N, labels), in the numbers of seeds
  Number seeds_number, values_number, u_number;
  bool values_shared, u_shared;  // one for the whole batch

  // exchanged between blocks; a "part" is one image and one range of labels, a "team" the blocks that walk it together
  float* published;    // (2, teams, N, part labels): P of two steps in turn
  float* pieces;       // (2, teams, slots, part labels): averages over cells, by pieces
  uint32_t* arrivals;  // (teams, kArrivals): how often blocks of a team have arrived, in the first; 0 at the launch
  // where rows are divided by sums over several parts, in the end:
  float* undivided;  // (batch, N, labels): P of the last step; the result itself where that is float32
  float* row_sums;   // (parts, N)

  int batch, labels, height, width;
  int window_height, window_width;  // 0 without a local part
  int cell_rows, cell_columns;       // 0 without a global part
  float restart_share, local_share, global_share;  // 1-α, α(1-β), αβ
  int64_t steps;
  bool normalize;

  // the plan
  int label_parts;
  int teams;                              // team t walks parts t, t + teams, ...
  int tile_height_bits, tile_width_bits;  // sides are powers of two
  int cells_per_chunk;                    // multiplied at a time
  bool u_resident;                        // in shared memory for the whole walk, else streamed by chunks

  __host__ __device__ int tile_height() const { return 1 << tile_height_bits; }
  __host__ __device__ int tile_width() const { return 1 << tile_width_bits; }
  __host__ __device__ int tile_tokens() const { return 1 << (tile_height_bits + tile_width_bits); }
  __host__ __device__ int tile_rows() const { return (height + tile_height() - 1) >> tile_height_bits; }
  __host__ __device__ int tile_columns() const { return (width + tile_width() - 1) >> tile_width_bits; }
  __host__ __device__ int num_tiles() const { return tile_rows() * tile_columns(); }
  __host__ __device__ int num_blocks() const { return teams * num_tiles(); }
  __host__ __device__ int num_parts() const { return batch * label_parts; }
  __host__ __device__ bool divided_at_the_end() const { return normalize && label_parts > 1; }
  __host__ __device__ int64_t num_tokens() const { return int64_t{height} * width; }
  __host__ __device__ int window_size() const { return window_height * window_width; }
  __host__ __device__ int num_cells() const { return cell_rows * cell_columns; }
  __host__ __device__ int radius_y() const { return window_height / 2; }
  __host__ __device__ int radius_x() const { return window_width / 2; }

  // A cell cut by the edges of tiles is published in pieces. Down the grid, piece after piece, tile index + cell index
  // grows by at least one each time, so this sum numbers the pieces without a table; across likewise.
  __host__ __device__ int slot_rows() const { return tile_rows() + cell_rows; }
  __host__ __device__ int slot_columns() const { return tile_columns() + cell_columns; }
  __host__ __device__ int64_t num_slots() const { return int64_t{slot_rows()} * slot_columns(); }
};

// Offsets in floats; every part starts on 16 bytes.
struct SharedLayout {
  int row_stride;    // of the tile with its halo
  int token_stride;  // of transposed values and u
  int tile, restart, values, u, cells, pieces, total;
  int scratch;  // T, then the sums of all warps, then the sums of rows

  __host__ __device__ SharedLayout(const Walk& walk, int labels_per_lane) {
    const int labels = kLabelLanes * labels_per_lane;
    const int tokens = walk.tile_tokens();
    // Quads below each other are read together: their rows are this far apart in banks so as not to collide.
    const int apart = labels_per_lane == 8 ? 4 : labels_per_lane == 4 ? 16 : 8;
    const int row = (walk.tile_width() + 2 * walk.radius_x()) * labels;
    row_stride = row + (apart - row % 32 + 32) % 32;
    token_stride = tokens + kPad;
    const int sums = kWarps * kTokensPerWarp * labels;
    const int pooled = walk.cells_per_chunk * labels;
    tile = 0;
    restart = tile + (walk.tile_height() + 2 * walk.radius_y()) * row_stride;
    values = restart + tokens * labels;
    u = values + walk.window_size() * token_stride;
    cells = u + (walk.u_resident ? walk.num_cells() : walk.cells_per_chunk) * token_stride;
    pieces = cells + (walk.num_cells() + 1) / 2 * 4;
    scratch = pieces + (walk.num_cells() > 0 ? tokens * 4 : 0);
    total = scratch + (sums > pooled ? sums : pooled);
  }
};

}  // namespace nerve_kernels::cuda
