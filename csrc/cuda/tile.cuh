#pragma once

// A block's tile of tokens: what it keeps in shared memory, and what it exchanges with other blocks.

#include "numbers.cuh"

namespace nerve_kernels::cuda {

template <int kLabelsPerLane>
struct Tile {
  static constexpr int kLabels = kLabelLanes * kLabelsPerLane;
  static constexpr int kVectors = kLabels / 4;                        // of a token, in float4
  static constexpr int kPairs = kTokensPerLane * kLabelsPerLane / 2;  // of a lane, in float2

  static constexpr int kLoads = 4;  // of a thread under way at once, when it fetches what others published

  const Walk& walk;
  const SharedLayout layout;
  float *const tile, *const restart, *const values, *const u, *const scratch;
  Cell* const cells;
  Piece* const pieces;
  const int thread, warp, lane;
  const int team, part, image;
  int top, left;                           // of its tile on the grid
  int first_cell_row, first_cell_column;   // of the cells that its tile touches
  int num_pieces, piece_columns;

  __device__ Tile(const Walk& walk, float* memory, int part)
      : walk(walk), layout(walk, kLabelsPerLane), tile(memory + layout.tile), restart(memory + layout.restart),
        values(memory + layout.values), u(memory + layout.u), scratch(memory + layout.scratch),
        cells(reinterpret_cast<Cell*>(memory + layout.cells)),
        pieces(reinterpret_cast<Piece*>(memory + layout.pieces)), thread(own(threadIdx.x)), warp(thread / 32),
        lane(thread % 32), team(blockIdx.x / walk.num_tiles()), part(part), image(part / walk.label_parts) {
    const int index = blockIdx.x % walk.num_tiles();
    top = index / walk.tile_columns() << walk.tile_height_bits;
    left = index % walk.tile_columns() << walk.tile_width_bits;
    num_pieces = 0;
    if (walk.num_cells() > 0) {
      const int bottom = min(top + walk.tile_height(), walk.height);
      const int right = min(left + walk.tile_width(), walk.width);
      first_cell_row = cell_of(top, walk.height, walk.cell_rows);
      first_cell_column = cell_of(left, walk.width, walk.cell_columns);
      piece_columns = cell_of(right - 1, walk.width, walk.cell_columns) - first_cell_column + 1;
      num_pieces = (cell_of(bottom - 1, walk.height, walk.cell_rows) - first_cell_row + 1) * piece_columns;
    }
  }

  // The same number, of which the compiler does not know that it is: what it computes from it for one part it would else
  // compute before all of them, or keep from the start of a part to its end, in registers that the steps need.
  __device__ static int own(int x) {
    asm volatile("" : "+r"(x));
    return x;
  }

  // Cell a covers positions floor(a * side / cells) ... floor((a + 1) * side / cells) - 1.
  __device__ static int cell_begin(int cell, int side, int cells) { return cell * side / cells; }
  __device__ static int cell_of(int position, int side, int cells) { return ((position + 1) * cells - 1) / side; }

  __device__ bool on_grid(int y, int x) const { return y >= 0 && y < walk.height && x >= 0 && x < walk.width; }
  __device__ int64_t token_at(int y, int x) const { return int64_t{y} * walk.width + x; }
  __device__ float* in_tile(int y, int x) const {
    return tile + (y + walk.radius_y()) * layout.row_stride + (x + walk.radius_x()) * kLabels;
  }
  __device__ float* published(uint32_t round) const {
    return walk.published + ((round & 1) * walk.teams + team) * walk.num_tokens() * kLabels;
  }
  __device__ float* published_pieces(uint32_t round) const {
    return walk.pieces + ((round & 1) * walk.teams + team) * walk.num_slots() * kLabels;
  }
  __device__ int quad_columns_bits() const { return walk.tile_width_bits - 2; }
  __device__ int quad_row(int quad) const { return quad >> quad_columns_bits(); }
  __device__ int quad_column(int quad) const { return (quad & ((1 << quad_columns_bits()) - 1)) * kTokensPerLane; }

  // Pair i of the tile's labels: pairs are numbered as lanes hold them, pair by pair and lane by lane.
  __device__ float* tile_pair(int i) const {
    const int pair = i / 32 % kPairs, token = pair / (kLabelsPerLane / 2);
    const int quad = i / 32 / kPairs * (kTokensPerWarp / kTokensPerLane) + i % 32 / kLabelLanes;
    return in_tile(quad_row(quad), quad_column(quad) + token) + i % kLabelLanes * kLabelsPerLane +
           pair % (kLabelsPerLane / 2) * 2;
  }

  // Calls `function` with each of this part's labels in the tile, its token and its index in (batch, N, labels).
  template <typename Function>
  __device__ void for_each_label(Function&& function) const {
    const int64_t first_token = image * walk.num_tokens();
    const int first_label = part % walk.label_parts * kLabels;
    for (int i = thread; i < walk.tile_tokens() * kLabels; i += kThreads) {
      const int token = i / kLabels, label = i % kLabels;
      const int y = token >> walk.tile_width_bits, x = token & (walk.tile_width() - 1);
      if (!on_grid(top + y, left + x) || first_label + label >= walk.labels) continue;
      const int64_t row = first_token + token_at(top + y, left + x);
      function(in_tile(y, x)[label], token, row * walk.labels + first_label + label);
    }
  }

  // ---- what stays in shared memory ---------------------------------------------------------------------------------

  __device__ void load_seeds() const {
    __syncthreads();  // the part before is still read, until it is written
    for (int i = thread; i < layout.restart - layout.tile; i += kThreads) tile[i] = 0;  // the halo off the grid
    __syncthreads();
    with_number(walk.seeds_number, [&](auto number) {
      const auto* seeds = static_cast<const decltype(number)*>(walk.seeds);
      for_each_label([&](float& p, int, int64_t index) { p = widen(seeds[index]); });
    });
    __syncthreads();
    for (int i = thread; i < walk.tile_tokens() * kLabels / 2; i += kThreads) {
      const float2 seed = *reinterpret_cast<const float2*>(tile_pair(i));
      reinterpret_cast<float2*>(restart)[i] =
          make_float2(walk.restart_share * seed.x, walk.restart_share * seed.y);
    }
  }

  // Columns `first` ... `first + count - 1` of the tile's rows of a matrix (tokens, row_length), times `share`:
  // to[column][token]. Where `counts(y, x, column)` is false the matrix is not read, and 0 is written.
  template <typename Counts>
  __device__ void load_transposed(Number number, const void* matrix, int64_t first_token, int row_length, float share,
                                  int first, int count, float* to, Counts&& counts) const {
    const int quads_bits = walk.tile_height_bits + quad_columns_bits();
    with_number(number, [&](auto stored) {
      const auto* from = static_cast<const decltype(stored)*>(matrix);
      for (int item = warp; item < (count + 31) / 32 << quads_bits; item += kWarps) {
        const int column = (item >> quads_bits) * 32 + lane, quad = item & ((1 << quads_bits) - 1);
        if (column >= count) continue;
        const int y = top + quad_row(quad), x = left + quad_column(quad);
        float four[kTokensPerLane];
#pragma unroll
        for (int t = 0; t < kTokensPerLane; ++t) {
          const bool wanted = on_grid(y, x + t) && counts(y, x + t, first + column);
          const int64_t row = first_token + token_at(y, x + t);
          four[t] = wanted ? share * widen(from[row * row_length + first + column]) : 0.0f;
        }
        *reinterpret_cast<float4*>(to + column * layout.token_stride + quad * kTokensPerLane) =
            make_float4(four[0], four[1], four[2], four[3]);
      }
    });
  }

  __device__ void load_values() const {
    load_transposed(walk.values_number, walk.values, walk.values_shared ? 0 : image * walk.num_tokens(),
                    walk.window_size(), walk.local_share, 0, walk.window_size(), values, [&](int y, int x, int place) {
                      const int dy = place / walk.window_width, dx = place - dy * walk.window_width;
                      return on_grid(y + dy - walk.radius_y(), x + dx - walk.radius_x());
                    });
  }

  __device__ void load_u(int first, int count) const {
    load_transposed(walk.u_number, walk.u, walk.u_shared ? 0 : image * walk.num_tokens(), walk.num_cells(),
                    walk.global_share, first, count, u, [](int, int, int) { return true; });
  }

  __device__ void list_cells() const {
    for (int i = thread; i < walk.num_cells(); i += kThreads) {
      const int a = i / walk.cell_columns, b = i % walk.cell_columns;
      const int tile_row = cell_begin(a, walk.height, walk.cell_rows) >> walk.tile_height_bits;
      const int tile_column = cell_begin(b, walk.width, walk.cell_columns) >> walk.tile_width_bits;
      const int last_row = (cell_begin(a + 1, walk.height, walk.cell_rows) - 1) >> walk.tile_height_bits;
      const int last_column = (cell_begin(b + 1, walk.width, walk.cell_columns) - 1) >> walk.tile_width_bits;
      cells[i].slot = (tile_row + a) * walk.slot_columns() + tile_column + b;
      cells[i].rows = static_cast<int16_t>(last_row - tile_row + 1);
      cells[i].columns = static_cast<int16_t>(last_column - tile_column + 1);
    }
    for (int i = thread; i < num_pieces; i += kThreads) {
      const int a = first_cell_row + i / piece_columns, b = first_cell_column + i % piece_columns;
      const int y0 = cell_begin(a, walk.height, walk.cell_rows), y1 = cell_begin(a + 1, walk.height, walk.cell_rows);
      const int x0 = cell_begin(b, walk.width, walk.cell_columns);
      const int x1 = cell_begin(b + 1, walk.width, walk.cell_columns);
      Piece& piece = pieces[i];
      piece.top = static_cast<int16_t>(max(y0 - top, 0));
      piece.bottom = static_cast<int16_t>(min(y1 - top, walk.tile_height()));
      piece.left = static_cast<int16_t>(max(x0 - left, 0));
      piece.right = static_cast<int16_t>(min(x1 - left, walk.tile_width()));
      piece.slot = ((top >> walk.tile_height_bits) + a) * walk.slot_columns() + (left >> walk.tile_width_bits) + b;
      piece.share = 1.0f / static_cast<float>((y1 - y0) * (x1 - x0));
    }
  }

  // ---- the exchange with other blocks ------------------------------------------------------------------------------

  // The blocks of this team wait for each other, for the last time in `round`: what they wrote before it, all may read
  // after it. One counter, which only grows, so that nothing is to be reset. It is never further than a round from what
  // is waited for, so the sign of the difference tells which is ahead, after 2^32 too. It decides when a block goes on
  // and never what it computes: results stay bitwise repeatable.
  __device__ void wait_for_team(uint32_t round) const {
    __syncthreads();
    if (thread == 0) {
      ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device> arrived(walk.arrivals[int64_t{team} * kArrivals]);
      const uint32_t all = (round + 1) * static_cast<uint32_t>(walk.num_tiles());
      arrived.fetch_add(1, ::cuda::memory_order_release);
      while (static_cast<int32_t>(arrived.load(::cuda::memory_order_acquire) - all) < 0) {
      }
    }
    __syncthreads();
  }

  // This tile's P and its pieces of cells, for the blocks of this team to read after they have waited in `round`.
  __device__ void publish(uint32_t round) const {
    if (walk.window_size() > 0) {
      const int vectors = min(walk.tile_width(), walk.width - left) * kVectors;
      for (int y = warp; y < walk.tile_height() && top + y < walk.height; y += kWarps) {
        float4* to = reinterpret_cast<float4*>(published(round) + token_at(top + y, left) * kLabels);
        for (int i = lane; i < vectors; i += 32) to[i] = reinterpret_cast<const float4*>(in_tile(y, 0))[i];
      }
    }
    for (int i = thread; i < num_pieces * kLabels; i += kThreads) {
      const Piece piece = pieces[i / kLabels];
      const int label = i % kLabels;
      float sum = 0;
      for (int y = piece.top; y < piece.bottom; ++y)
        for (int x = piece.left; x < piece.right; ++x) sum += in_tile(y, x)[label];
      published_pieces(round)[int64_t{piece.slot} * kLabels + label] = piece.share * sum;
    }
  }

  // The tokens around the tile, as other blocks published them; those off the grid stay 0.
  __device__ void fetch_halo(uint32_t round) const {
    if (walk.window_size() == 0) return;
    constexpr int kAcross = 64, kRows = kThreads / kAcross;  // threads along a row, rows at a time
    const int first_x = max(left - walk.radius_x(), 0);
    const int end_x = min(left + walk.tile_width() + walk.radius_x(), walk.width);
    const int first_y = max(-walk.radius_y(), -top);
    const int end_y = min(walk.tile_height() + walk.radius_y(), walk.height - top);
    const int own_begin = (left - first_x) * kVectors, own_end = own_begin + walk.tile_width() * kVectors;
    const float4* from = reinterpret_cast<const float4*>(published(round)) + first_x * kVectors;
    for (int i = thread % kAcross; i < (end_x - first_x) * kVectors; i += kAcross) {
      const bool own_column = i >= own_begin && i < own_end;
      const auto wanted = [&](int y) { return y < end_y && !(own_column && y >= 0 && y < walk.tile_height()); };
      for (int y = first_y + thread / kAcross; y < end_y; y += kLoads * kRows) {
        float4 fetched[kLoads] = {};
#pragma unroll
        for (int j = 0; j < kLoads; ++j)
          if (wanted(y + j * kRows)) fetched[j] = __ldcg(from + token_at(top + y + j * kRows, 0) * kVectors + i);
#pragma unroll
        for (int j = 0; j < kLoads; ++j)
          if (wanted(y + j * kRows))
            reinterpret_cast<float4*>(in_tile(y + j * kRows, first_x - left))[i] = fetched[j];
      }
    }
  }

  // T of cells `first` ... `first + count - 1`: scratch[cell][label].
  __device__ void fetch_pooled(uint32_t round, int first, int count) const {
    const float4* from = reinterpret_cast<const float4*>(published_pieces(round));
    float4* to = reinterpret_cast<float4*>(scratch);
    for (int begin = thread; begin < count * kVectors; begin += kLoads * kThreads) {
      float4 pooled[kLoads] = {};
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int i = begin + j * kThreads;
        if (i < count * kVectors) pooled[j] = __ldcg(from + cells[first + i / kVectors].slot * kVectors + i % kVectors);
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int i = begin + j * kThreads;
        if (i >= count * kVectors) break;
        const Cell cell = cells[first + i / kVectors];
        for (int piece = 1; piece < cell.rows * cell.columns; ++piece) {
          const int slot = cell.slot + piece / cell.columns * walk.slot_columns() + piece % cell.columns;
          const float4 more = __ldcg(from + slot * kVectors + i % kVectors);
          pooled[j].x += more.x, pooled[j].y += more.y, pooled[j].z += more.z, pooled[j].w += more.w;
        }
        to[i] = pooled[j];
      }
    }
  }
};

}  // namespace nerve_kernels::cuda
