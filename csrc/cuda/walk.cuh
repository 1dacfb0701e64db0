#pragma once

// The whole random walk P ← (1-α) G + α (β U T + (1-β) S_local P), T the averages of P over cells, in one launch.
//
// A part, one image and one range of labels, needs no other part, until rows are divided by their sums. The blocks that
// walk it, one for each tile of tokens, are a team: they wait for each other and for nobody else, and take part after
// part, so that the tiles of one part have to be resident at once and no more. A block keeps its P, its restart term,
// its window values and its rows of U in shared memory for all steps. Once a step a team exchanges what its blocks need
// of P, the tokens around a tile and the averages over cells, through buffers in global memory, which stay in L2. What
// another block wrote is read with __ldcg, which passes over the L1 cache: that one is not coherent between
// multiprocessors.
//
// Two buffers in turn, so that one wait a step is enough: a block that publishes in round r + 1 has waited in round r,
// for which every other block had read all that was published in round r - 1, the last that used the same buffer.
// Rounds are counted on from part to part, so this holds between the last step of a part and the first of the next too.
//
// A warp multiplies 32 tokens × the block's labels, each lane 4 tokens × kLabelsPerLane labels in registers. The warps
// that share 32 tokens split the cells and the rows of the window among them; their sums are added in a fixed order, so
// results are bitwise repeatable. Everything is computed in float32.

#include "tile.cuh"

namespace nerve_kernels::cuda {

template <int kLabelsPerLane>
struct TileWalk : Tile<kLabelsPerLane> {
  using Base = Tile<kLabelsPerLane>;
  using Sums = float[kTokensPerLane][kLabelsPerLane];
  using Base::Base, Base::kLabels, Base::kPairs;
  using Base::walk, Base::layout, Base::restart, Base::values, Base::u, Base::scratch;
  using Base::thread, Base::warp, Base::lane, Base::team, Base::part, Base::image, Base::top, Base::left;
  using Base::in_tile, Base::tile_pair, Base::quad_row, Base::quad_column, Base::on_grid, Base::token_at;
  using Base::for_each_label, Base::fetch_halo, Base::fetch_pooled, Base::list_cells, Base::load_seeds,
      Base::load_values, Base::load_u;

  // The warps that share 32 tokens are neighbours; a power of two.
  __device__ int warps_per_tokens() const { return kThreads >> (walk.tile_height_bits + walk.tile_width_bits); }
  __device__ int warp_in_group() const { return warp & (warps_per_tokens() - 1); }
  __device__ int lane_quad() const {
    return warp / warps_per_tokens() * (kTokensPerWarp / kTokensPerLane) + lane / kLabelLanes;
  }
  __device__ int lane_label() const { return lane % kLabelLanes * kLabelsPerLane; }

  __device__ static void multiply_add(const float4& weights, const float* labels0, const float* labels1,
                                      const float* labels2, const float* labels3, Sums& sums) {
#pragma unroll
    for (int label = 0; label < kLabelsPerLane; ++label) {
      sums[0][label] += weights.x * labels0[label];
      sums[1][label] += weights.y * labels1[label];
      sums[2][label] += weights.z * labels2[label];
      sums[3][label] += weights.w * labels3[label];
    }
  }

  // What a part is walked from, less what the part before it left in shared memory.
  __device__ void begin() const {
    const bool first = part == team, other_image = image != (part - walk.teams) / walk.label_parts;
    if (first) list_cells();
    load_seeds();
    if (first || (other_image && !walk.values_shared)) load_values();
    if (walk.u_resident && (first || (other_image && !walk.u_shared))) load_u(0, walk.num_cells());
  }

  // This warp's rows of the window. Four neighbouring tokens share all but one of the tokens that each looks at.
  __device__ void add_window(Sums& sums) const {
    for (int dy = warp_in_group(); dy < walk.window_height; dy += warps_per_tokens()) {
      const float* row = in_tile(quad_row(lane_quad()) + dy - walk.radius_y(),
                                 quad_column(lane_quad()) - walk.radius_x()) + lane_label();
      const float* weights = values + dy * walk.window_width * layout.token_stride + lane_quad() * kTokensPerLane;
      float seen[4][kLabelsPerLane];  // of token x in seen[x % 4]
#pragma unroll
      for (int x = 0; x < 3; ++x) load_labels(row + x * kLabels, seen[x]);
      for (int dx = 0; dx < walk.window_width; dx += 4) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (dx + j >= walk.window_width) break;
          load_labels(row + (dx + j + 3) * kLabels, seen[(j + 3) % 4]);
          multiply_add(*reinterpret_cast<const float4*>(weights + (dx + j) * layout.token_stride), seen[j],
                       seen[(j + 1) % 4], seen[(j + 2) % 4], seen[(j + 3) % 4], sums);
        }
      }
    }
  }

  // This warp's share of `count` cells, U from row `first` of u and T from scratch memory.
  __device__ void add_cells(int first, int count, Sums& sums) const {
    const float* weights = u + first * layout.token_stride + lane_quad() * kTokensPerLane;
    const float* pooled = scratch + lane_label();
#pragma unroll 4
    for (int cell = warp_in_group(); cell < count; cell += warps_per_tokens()) {
      float row[kLabelsPerLane];
      load_labels(pooled + cell * kLabels, row);
      multiply_add(*reinterpret_cast<const float4*>(weights + cell * layout.token_stride), row, row, row, row, sums);
    }
  }

  // P = restart + the sums of all warps; scratch memory holds T no longer, and no warp reads the tile any more.
  __device__ void combine(const Sums& sums) const {
    float2* all = reinterpret_cast<float2*>(scratch);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int token = pair / (kLabelsPerLane / 2), label = pair % (kLabelsPerLane / 2) * 2;
      all[(warp * kPairs + pair) * 32 + lane] = make_float2(sums[token][label], sums[token][label + 1]);
    }
    __syncthreads();
    constexpr int kPairsPerWarp = kPairs * 32;
    for (int i = thread; i < walk.tile_tokens() * kLabels / 2; i += kThreads) {
      const int first = i / kPairsPerWarp * warps_per_tokens() * kPairsPerWarp + i % kPairsPerWarp;
      float2 total = reinterpret_cast<const float2*>(restart)[i];
      for (int slice = 0; slice < warps_per_tokens(); ++slice) {
        const float2 sum = all[first + slice * kPairsPerWarp];
        total.x += sum.x, total.y += sum.y;
      }
      *reinterpret_cast<float2*>(tile_pair(i)) = total;
    }
  }

  __device__ void step(uint32_t round) const {
    Sums sums = {};
    const int num_cells = walk.num_cells(), chunk = walk.cells_per_chunk;
    fetch_halo(round);
    fetch_pooled(round, 0, min(chunk, num_cells));
    if (!walk.u_resident) load_u(0, min(chunk, num_cells));
    __syncthreads();
    add_window(sums);
    for (int first = 0; first < num_cells; first += chunk) {
      const int count = min(chunk, num_cells - first);
      if (first > 0) {
        __syncthreads();
        fetch_pooled(round, first, count);
        if (!walk.u_resident) load_u(first, count);
        __syncthreads();
      }
      add_cells(walk.u_resident ? first : 0, count, sums);
    }
    __syncthreads();
    combine(sums);
    __syncthreads();
  }

  // P of this part, written; rows are divided by their sums where asked for, at once where no other part shares them.
  __device__ void finish() const {
    float* totals = scratch;
    if (walk.normalize && thread < walk.tile_tokens()) {
      const int y = thread >> walk.tile_width_bits, x = thread & (walk.tile_width() - 1);
      float total = 0;
      for (int label = 0; label < kLabels; ++label) total += in_tile(y, x)[label];
      totals[thread] = total;
      if (walk.divided_at_the_end() && on_grid(top + y, left + x))
        walk.row_sums[part * walk.num_tokens() + token_at(top + y, left + x)] = total;
    }
    __syncthreads();
    if (walk.divided_at_the_end())
      for_each_label([&](const float& p, int, int64_t index) { walk.undivided[index] = p; });
    else
      write([](const float& p, int64_t) { return p; });
  }

  // The rows of this part, which this block left undivided; all parts are through.
  __device__ void divide() const {
    float* totals = scratch;
    const int y = top + (thread >> walk.tile_width_bits), x = left + (thread & (walk.tile_width() - 1));
    __syncthreads();  // the totals of the part before are still read
    if (thread < walk.tile_tokens() && on_grid(y, x)) {
      const float* sums = walk.row_sums + int64_t{image} * walk.label_parts * walk.num_tokens() + token_at(y, x);
      float total = 0;
      for (int other = 0; other < walk.label_parts; ++other) total += __ldcg(sums + other * walk.num_tokens());
      totals[thread] = total;
    }
    __syncthreads();
    write([&](const float&, int64_t index) { return walk.undivided[index]; });  // that this thread wrote itself
  }

  // The result in the numbers of the seeds: what `value` gives for a label and its index, over its row's total.
  template <typename Value>
  __device__ void write(Value&& value) const {
    with_number(walk.seeds_number, [&](auto number) {
      auto* result = static_cast<decltype(number)*>(walk.result);
      for_each_label([&](const float& p, int token, int64_t index) {
        const float total = walk.normalize && scratch[token] != 0 ? scratch[token] : 1.0f;
        narrow(value(p, index) / total, result + index);
      });
    });
  }
};

// The blocks of one tile each walk a part together, a team, and then the next; all are resident at once, which only a
// cooperative launch promises.
template <int kLabelsPerLane>
__global__ void __launch_bounds__(kThreads, 2) random_walk_kernel(const Walk walk) {
  DYNAMIC_SHARED_MEMORY(memory);
  const int team = blockIdx.x / walk.num_tiles();
  uint32_t round = 0;  // steps of this team, over all of its parts
  for (int part = team; part < walk.num_parts(); part += walk.teams) {
    const TileWalk<kLabelsPerLane> block(walk, reinterpret_cast<float*>(memory), part);
    block.begin();
    for (int64_t step = 0; step < walk.steps; ++step, ++round) {
      block.publish(round);
      block.wait_for_team(round);
      block.step(round);
    }
    block.finish();
  }
  if (!walk.divided_at_the_end()) return;
  cooperative_groups::this_grid().sync();
  for (int part = team; part < walk.num_parts(); part += walk.teams)
    TileWalk<kLabelsPerLane>(walk, reinterpret_cast<float*>(memory), part).divide();
}

}  // namespace nerve_kernels::cuda
