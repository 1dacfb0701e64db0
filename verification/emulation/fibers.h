// CUDA's threads as fibres, seen by the sanitizers as threads, and the barriers that order them; see cuda_on_cpu.h.
#pragma once

#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

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

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

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
  uint64_t seen_writes = 0;  // of the grid, when this one last read an atomic number
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
    bool done = false, waits = false;  // for what another block has to do
  };
  Grid(unsigned blocks, uint64_t seed) : seats(new Seat[blocks]), count(blocks), alive(blocks), in_turns(seed % 2 == 1), random(seed) {}
  std::unique_ptr<Seat[]> seats;
  unsigned count, alive;
  bool in_turns;  // blocks may change places between barriers of the grid
  Barrier barrier;
  Barrier written;      // what a thread waits for that would read an atomic number again before it can have changed
  uint64_t writes = 1;  // of all atomic numbers
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

HIDDEN_FROM_TSAN inline void wake_threads(const Barrier& barrier) {
  const unsigned threads = block->size.x;
  for (unsigned i = 0; i < threads; ++i)
    if (block->fibers[i].waits_for == &barrier) block->fibers[i].waits_for = nullptr;
}

HIDDEN_FROM_TSAN inline void wake(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.phase;
  wake_threads(barrier);
}

HIDDEN_FROM_TSAN inline void wake_blocks() {
  for (unsigned i = 0; i < block->grid.count; ++i) block->grid.seats[i].waits = false;
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

// A thread that reads an atomic number, and nothing was written to one since it last did, waits in a loop for a change:
// it would read the same again, so it sleeps until there is one.
HIDDEN_FROM_TSAN inline void before_atomic_read() {
  Grid& grid = block->grid;
  if (block->current->seen_writes == grid.writes) wait_for(grid.written);
  block->current->seen_writes = grid.writes;
}

HIDDEN_FROM_TSAN inline void after_atomic_write() {
  ++block->grid.writes;
  wake_blocks();
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

}  // namespace cuda_on_cpu
