// CUDA C++ kernels on the CPU: include this instead of CUDA's headers, compile with g++ and launch.
//
// Each block is an OS thread and each CUDA thread a fibre of it. Only one fibre runs at a time, from one barrier to the
// next, and a seed decides which: among the threads of a block each time one stops, and among the blocks, so that a run
// is repeated exactly by its seed. Under an even seed a block runs up to a grid barrier, and so gets as far ahead of the
// others as it can; under an odd one another block may go on at any time. A missing barrier shows as a wrong result, because in some schedule a thread reads
// before another has written; shared memory starts as NaN. What ends the program with a message and exit code 3: a
// barrier that not all threads of a block reach, two different barriers met in one phase, a grid barrier that not all
// blocks reach, and a warp function whose mask names other lanes than those that call it.
//
// With -fsanitize=thread every fibre is known to ThreadSanitizer as a thread, and only barriers order them: the
// scheduler itself is hidden from it, so two threads that touch the same memory without a barrier between are reported
// with both lines, whether or not the result came out wrong. With -fsanitize=address the stacks and shared memory are
// bounded. Not emulated: weak memory between barriers, L1 caches that are not coherent, warps in lockstep.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define IF_TSAN(...) __VA_ARGS__
#else
#define IF_TSAN(...)
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define IF_ASAN(...) __VA_ARGS__
#else
#define IF_ASAN(...)
#endif
// The scheduler, which fibres share without barriers, must not look like a race.
#define HIDDEN_FROM_TSAN __attribute__((no_sanitize("thread"), noinline))

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define DYNAMIC_SHARED_MEMORY(name) float4* const name = static_cast<float4*>(cuda_on_cpu::shared_memory())

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __half {
  _Float16 number;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half x) { return static_cast<float>(x.number); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}

using std::max;
using std::min;

template <typename T>
T __ldcg(const T* from) {
  return *from;
}

namespace cuda_on_cpu {

constexpr size_t kStackBytes = 128 << 10;

// Threads that wait for each other. Two tags in turn, so that who arrives for the next phase is not taken for having
// arrived in this one.
struct Barrier {
  unsigned arrived = 0;
  uint64_t phase = 0;
  char tags[2] = {};
};

struct Fiber {
  ucontext_t context = {};
  unsigned index = 0;
  bool done = false;
  const Barrier* waits_for = nullptr;
  void* tsan = nullptr;
  void* asan_stack = nullptr;
  std::unique_ptr<char[]> stack;
};

struct Warp {
  Barrier barrier;
  uint32_t alive = 0, called = 0;
  uint64_t values[32] = {};
};

class Random {  // xorshift64*: small enough to be hidden from ThreadSanitizer
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  HIDDEN_FROM_TSAN unsigned below(unsigned count) {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<unsigned>((state_ * 0x2545f4914f6cdd1d) >> 33) % count;
  }

 private:
  uint64_t state_;
};

// What all blocks share. Only the block whose turn it is looks at it.
struct Grid {
  struct Seat {
    int turn = 0;  // 1: this block runs
    bool done = false, at_grid_barrier = false;
  };
  Grid(unsigned blocks, uint64_t seed) : seats(new Seat[blocks]), count(blocks), alive(blocks), in_turns(seed % 2 == 1), random(seed) {}
  std::unique_ptr<Seat[]> seats;
  unsigned count, alive;
  bool in_turns;  // blocks may change places between barriers of the grid
  Barrier barrier;
  Random random;
};

struct Block {
  Block(Grid& grid, dim3 index, dim3 blocks, dim3 threads, void* shared, uint64_t seed)
      : grid(grid), index(index), size(threads), blocks(blocks), shared(shared), random(seed), alive(threads.x),
        fibers(new Fiber[threads.x]), warps(new Warp[(threads.x + 31) / 32]) {}
  Grid& grid;
  dim3 index, size, blocks;
  void* shared;
  Random random;
  unsigned alive;
  Barrier barrier;
  int barrier_line = 0;
  unsigned at_grid_barrier = 0;
  char exit_tag = 0;
  std::unique_ptr<Fiber[]> fibers;
  std::unique_ptr<Warp[]> warps;
  Fiber* current = nullptr;
  ucontext_t scheduler = {};
  void* scheduler_tsan = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_asan_stack = nullptr;
  void (*kernel)(void*) = nullptr;
  void* arguments = nullptr;
};

inline thread_local Block* block = nullptr;

HIDDEN_FROM_TSAN [[noreturn]] inline void fail(const char* what) {
  const unsigned thread = block->current ? block->current->index : 0;
  std::fprintf(stderr, "cuda_on_cpu: block %u, thread %u: %s\n", block->index.x, thread, what);
  _exit(3);
}

// ---- fibres ----------------------------------------------------------------------------------------------------------

HIDDEN_FROM_TSAN inline void to_scheduler() {
  Fiber* self = block->current;
  IF_TSAN(__tsan_switch_to_fiber(block->scheduler_tsan, __tsan_switch_to_fiber_no_sync));
  IF_ASAN(__sanitizer_start_switch_fiber(self->done ? nullptr : &self->asan_stack, block->scheduler_stack,
                                         block->scheduler_stack_bytes));
  swapcontext(&self->context, &block->scheduler);
  IF_ASAN(__sanitizer_finish_switch_fiber(self->asan_stack, &block->scheduler_stack, &block->scheduler_stack_bytes));
}

HIDDEN_FROM_TSAN inline void to_fiber(Fiber& fiber) {
  block->current = &fiber;
  IF_TSAN(__tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync));
  IF_ASAN(__sanitizer_start_switch_fiber(&block->scheduler_asan_stack, fiber.stack.get(), kStackBytes));
  swapcontext(&block->scheduler, &fiber.context);
  IF_ASAN(__sanitizer_finish_switch_fiber(block->scheduler_asan_stack, nullptr, nullptr));
  block->current = nullptr;
}

HIDDEN_FROM_TSAN inline void wake(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.phase;
  const unsigned threads = block->size.x;
  for (unsigned i = 0; i < threads; ++i)
    if (block->fibers[i].waits_for == &barrier) block->fibers[i].waits_for = nullptr;
}

HIDDEN_FROM_TSAN inline void wait_for(Barrier& barrier) {
  block->current->waits_for = &barrier;
  to_scheduler();
}

// ---- barriers --------------------------------------------------------------------------------------------------------

HIDDEN_FROM_TSAN inline void release_block_if_all_arrived() {
  Barrier& barrier = block->barrier;
  if (barrier.arrived > 0 && barrier.arrived == block->alive) {
    block->barrier_line = 0;
    wake(barrier);
  }
}

HIDDEN_FROM_TSAN inline void block_barrier(int line) {
  Barrier& barrier = block->barrier;
  char* tag = &barrier.tags[barrier.phase & 1];
  (void)tag;
  IF_TSAN(__tsan_release(tag));
  if (block->barrier_line != 0 && block->barrier_line != line) fail("two different __syncthreads in one phase");
  block->barrier_line = line;
  block->current->waits_for = &barrier;
  ++barrier.arrived;
  release_block_if_all_arrived();
  to_scheduler();
  IF_TSAN(__tsan_acquire(tag));
}

HIDDEN_FROM_TSAN inline void grid_barrier() {
  Barrier& barrier = block->grid.barrier;
  char* tag = &barrier.tags[barrier.phase & 1];
  (void)tag;
  IF_TSAN(__tsan_release(tag));
  ++block->at_grid_barrier;
  wait_for(barrier);
  IF_TSAN(__tsan_acquire(tag));
}

HIDDEN_FROM_TSAN inline void warp_barrier(uint32_t mask) {
  Warp& warp = block->warps[block->current->index / 32];
  const uint32_t self = 1u << block->current->index % 32;
  if (!(mask & self)) fail("a lane calls a warp function without being in its mask");
  if (mask & ~warp.alive) fail("the mask of a warp function names a lane that has exited");
  char* tag = &warp.barrier.tags[warp.barrier.phase & 1];
  (void)tag;
  IF_TSAN(__tsan_release(tag));
  warp.called |= self;
  block->current->waits_for = &warp.barrier;
  if ((warp.called & mask) == mask) {
    warp.called = 0;
    wake(warp.barrier);
  }
  to_scheduler();
  IF_TSAN(__tsan_acquire(tag));
}

template <typename T>
HIDDEN_FROM_TSAN T shuffle(uint32_t mask, T value, int source) {
  Warp& warp = block->warps[block->current->index / 32];
  std::memcpy(&warp.values[block->current->index % 32], &value, sizeof value);
  warp_barrier(mask);
  if (source < 0 || source > 31 || !(mask >> source & 1)) fail("a shuffle reads a lane that is not in its mask");
  std::memcpy(&value, &warp.values[source], sizeof value);
  warp_barrier(mask);
  return value;
}

// ---- blocks in turn --------------------------------------------------------------------------------------------------

HIDDEN_FROM_TSAN inline void sleep_until_turn(Grid::Seat& seat) {
  while (__atomic_load_n(&seat.turn, __ATOMIC_ACQUIRE) == 0)
    syscall(SYS_futex, &seat.turn, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
}

HIDDEN_FROM_TSAN inline void give_turn(Grid::Seat& seat) {
  __atomic_store_n(&seat.turn, 1, __ATOMIC_RELEASE);
  syscall(SYS_futex, &seat.turn, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

// Lets a block chosen by the seed run; returns when it is this one's turn again, at once where this one has ended.
HIDDEN_FROM_TSAN inline void pass_turn() {
  Grid& grid = block->grid;
  unsigned able = 0;
  for (unsigned i = 0; i < grid.count; ++i) able += !grid.seats[i].done && !grid.seats[i].at_grid_barrier;
  if (able == 0 && grid.alive > 0) fail("a grid barrier that not all blocks reach");
  if (able == 0) return;
  unsigned chosen = grid.random.below(able), next = 0;
  while (grid.seats[next].done || grid.seats[next].at_grid_barrier || chosen-- > 0) ++next;
  Grid::Seat& own = grid.seats[block->index.x];
  if (&grid.seats[next] == &own) return;
  own.turn = 0;
  give_turn(grid.seats[next]);
  if (!own.done) sleep_until_turn(own);
}

// All threads of this block wait for the grid: the last block to do so lets every block go on.
HIDDEN_FROM_TSAN inline void arrive_at_grid_barrier() {
  Grid& grid = block->grid;
  const uint64_t phase = grid.barrier.phase;
  grid.seats[block->index.x].at_grid_barrier = true;
  if (++grid.barrier.arrived == grid.count) {
    grid.barrier.arrived = 0;
    ++grid.barrier.phase;
    for (unsigned i = 0; i < grid.count; ++i) grid.seats[i].at_grid_barrier = false;
  }
  while (grid.barrier.phase == phase) pass_turn();
  block->at_grid_barrier = 0;
  for (unsigned i = 0; i < block->size.x; ++i)
    if (block->fibers[i].waits_for == &grid.barrier) block->fibers[i].waits_for = nullptr;
}

// ---- a launch --------------------------------------------------------------------------------------------------------

HIDDEN_FROM_TSAN inline void fiber_main() {
  Fiber* self = block->current;
  IF_ASAN(__sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_bytes));
  block->kernel(block->arguments);
  IF_TSAN(__tsan_release(&block->exit_tag));
  self->done = true;
  --block->alive;
  block->warps[self->index / 32].alive &= ~(1u << self->index % 32);
  release_block_if_all_arrived();
  to_scheduler();
}

HIDDEN_FROM_TSAN inline void run_fibers() {
  const unsigned threads = block->size.x;
  Grid::Seat& seat = block->grid.seats[block->index.x];
  sleep_until_turn(seat);
  while (block->alive > 0) {
    unsigned able = 0;
    for (unsigned i = 0; i < threads; ++i) able += !block->fibers[i].done && !block->fibers[i].waits_for;
    if (able > 0) {
      unsigned chosen = block->random.below(able), next = 0;
      while (block->fibers[next].done || block->fibers[next].waits_for || chosen-- > 0) ++next;
      to_fiber(block->fibers[next]);
      if (block->grid.in_turns && block->random.below(threads) == 0) pass_turn();
    } else if (block->at_grid_barrier == block->alive) {
      arrive_at_grid_barrier();
    } else {
      fail("a barrier that not all threads reach");
    }
  }
  IF_TSAN(__tsan_acquire(&block->exit_tag));
  seat.done = true;
  --block->grid.alive;
  pass_turn();
}

inline void prepare(Fiber& fiber, unsigned index) {
  fiber.index = index;
  block->warps[index / 32].alive |= 1u << index % 32;
  fiber.stack.reset(new char[kStackBytes]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.context, fiber_main, 0);
  IF_TSAN(fiber.tsan = __tsan_create_fiber(0));
}

inline void run_block(Grid& grid, dim3 index, dim3 blocks, dim3 threads, size_t shared_bytes, uint64_t seed,
                      void (*kernel)(void*), void* arguments) {
  std::unique_ptr<float4[]> shared(new float4[(shared_bytes + 15) / 16]);
  std::memset(static_cast<void*>(shared.get()), 0xff, shared_bytes);
  Block self(grid, index, blocks, threads, shared.get(), seed);
  self.kernel = kernel, self.arguments = arguments;
  block = &self;
  IF_TSAN(self.scheduler_tsan = __tsan_get_current_fiber());
  for (unsigned i = 0; i < threads.x; ++i) prepare(self.fibers[i], i);
  run_fibers();
  IF_TSAN(for (unsigned i = 0; i < threads.x; ++i) __tsan_destroy_fiber(self.fibers[i].tsan));
  block = nullptr;
}

// kernel<<<blocks, threads, shared_bytes>>>(arguments...), all blocks resident, in the schedule of `seed`.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared_bytes, uint64_t seed,
            Arguments... arguments) {
  auto call = [=] { kernel(arguments...); };
  auto run = [](void* function) { (*static_cast<decltype(call)*>(function))(); };
  Grid grid(blocks, seed);
  give_turn(grid.seats[grid.random.below(blocks)]);
  std::vector<std::thread> running;
  for (unsigned i = 0; i < blocks; ++i)
    running.emplace_back(run_block, std::ref(grid), dim3{i}, dim3{blocks}, dim3{threads}, shared_bytes,
                         seed * 7919 + i, +run, &call);
  for (std::thread& thread : running) thread.join();
}

HIDDEN_FROM_TSAN inline dim3 thread_index() { return {block->current->index, 0, 0}; }
HIDDEN_FROM_TSAN inline dim3 block_index() { return {block->index.x, 0, 0}; }
HIDDEN_FROM_TSAN inline dim3 block_size() { return block->size; }
HIDDEN_FROM_TSAN inline dim3 grid_size() { return block->blocks; }
HIDDEN_FROM_TSAN inline void* shared_memory() { return block->shared; }

}  // namespace cuda_on_cpu

namespace cooperative_groups {
struct grid_group {
  void sync() const { cuda_on_cpu::grid_barrier(); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups

#define threadIdx (cuda_on_cpu::thread_index())
#define blockIdx (cuda_on_cpu::block_index())
#define blockDim (cuda_on_cpu::block_size())
#define gridDim (cuda_on_cpu::grid_size())
#define __syncthreads() cuda_on_cpu::block_barrier(__LINE__)

inline void __syncwarp(uint32_t mask = ~0u) { cuda_on_cpu::warp_barrier(mask); }
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return cuda_on_cpu::shuffle(mask, value, source);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
  return cuda_on_cpu::shuffle(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}
