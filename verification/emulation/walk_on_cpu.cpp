// walk_on_cpu PROBLEM RESULT SEED: runs csrc/cuda/walk.cuh on the CPU.
//
// PROBLEM is what emulated_walk.py writes: the sizes below as int64, three shares as double, then seeds, values and u
// with the number of their bytes before each. RESULT is what the kernel wrote, byte by byte.

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>

#include "cuda_on_cpu.h"  // in place of CUDA's headers, so before the kernel

#include "walk.cuh"

namespace {

using nerve_kernels::cuda::Number;
using nerve_kernels::cuda::SharedLayout;
using nerve_kernels::cuda::Walk;

// Exactly as large as it has to be, for AddressSanitizer, and NaN where nothing was written.
std::vector<char> bytes_of_nan(int64_t count) { return std::vector<char>(count, static_cast<char>(0xff)); }

template <typename T>
T read(std::ifstream& from) {
  T value;
  from.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

std::vector<char> read_bytes(std::ifstream& from) {
  std::vector<char> bytes(read<int64_t>(from));
  from.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

template <int kLabelsPerLane>
void launch(const Walk& walk, int64_t expected_shared_bytes, uint64_t seed) {
  const int64_t shared_bytes = int64_t{4} * SharedLayout(walk, kLabelsPerLane).total;
  if (shared_bytes != expected_shared_bytes) {
    std::cerr << "the plan says " << expected_shared_bytes << " bytes of shared memory, the kernel needs "
              << shared_bytes << "\n";
    std::exit(4);
  }
  cuda_on_cpu::launch(nerve_kernels::cuda::random_walk_kernel<kLabelsPerLane>, walk.num_blocks(),
                      nerve_kernels::cuda::kThreads, shared_bytes, seed, walk);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  std::ifstream problem(arguments[1], std::ios::binary);
  problem.exceptions(std::ios::failbit | std::ios::eofbit);
  const auto next = [&] { return static_cast<int>(read<int64_t>(problem)); };
  Walk walk = {};
  walk.batch = next(), walk.labels = next(), walk.height = next(), walk.width = next();
  walk.window_height = next(), walk.window_width = next(), walk.cell_rows = next(), walk.cell_columns = next();
  walk.steps = next(), walk.normalize = next() != 0;
  walk.seeds_number = Number(next()), walk.values_number = Number(next()), walk.u_number = Number(next());
  walk.values_shared = next() != 0, walk.u_shared = next() != 0;
  const int labels_per_lane = next();
  walk.label_parts = next(), walk.tile_height_bits = next(), walk.tile_width_bits = next();
  walk.cells_per_chunk = next(), walk.u_resident = next() != 0, walk.teams = next();
  const int64_t shared_bytes = next();
  walk.restart_share = static_cast<float>(read<double>(problem));
  walk.local_share = static_cast<float>(read<double>(problem));
  walk.global_share = static_cast<float>(read<double>(problem));
  const std::vector<char> seeds = read_bytes(problem), values = read_bytes(problem), u = read_bytes(problem);

  const int64_t part_bytes = int64_t{16} * labels_per_lane * walk.teams;
  std::vector<char> published = bytes_of_nan(walk.window_size() > 0 ? 2 * part_bytes * walk.num_tokens() : 0);
  std::vector<char> pieces = bytes_of_nan(walk.num_cells() > 0 ? 2 * part_bytes * walk.num_slots() : 0);
  const bool in_the_end = walk.divided_at_the_end(), in_place = walk.seeds_number == Number::kFloat32;
  std::vector<char> row_sums = bytes_of_nan(in_the_end ? 4 * walk.num_parts() * walk.num_tokens() : 0);
  std::vector<char> undivided = bytes_of_nan(in_the_end && !in_place ? 2 * static_cast<int64_t>(seeds.size()) : 0);
  std::vector<char> result = bytes_of_nan(static_cast<int64_t>(seeds.size()));
  std::vector<uint32_t> arrivals(walk.teams * nerve_kernels::cuda::kArrivals);
  walk.seeds = seeds.data(), walk.values = values.data(), walk.u = u.data(), walk.result = result.data();
  walk.published = reinterpret_cast<float*>(published.data());
  walk.pieces = reinterpret_cast<float*>(pieces.data());
  walk.arrivals = arrivals.data();
  walk.undivided = reinterpret_cast<float*>(in_place ? result.data() : undivided.data());
  walk.row_sums = reinterpret_cast<float*>(row_sums.data());

  const uint64_t seed = std::stoull(arguments[3]);
  switch (labels_per_lane) {
    case 2: launch<2>(walk, shared_bytes, seed); break;
#if !defined(ONLY_2_LABELS_PER_LANE)  // a fourth of the time to compile: for mutants
    case 4: launch<4>(walk, shared_bytes, seed); break;
    case 6: launch<6>(walk, shared_bytes, seed); break;
    case 8: launch<8>(walk, shared_bytes, seed); break;
#endif
    default: return 2;
  }
  std::ofstream(arguments[2], std::ios::binary).write(result.data(), static_cast<std::streamsize>(result.size()));
}
