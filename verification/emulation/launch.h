// Blocks as OS threads that take turns, and the launch of a kernel; see cuda_on_cpu.h.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>

#include <functional>
#include <thread>
#include <vector>

#include "fibers.h"

namespace cuda_on_cpu {

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
  for (unsigned i = 0; i < grid.count; ++i) able += !grid.seats[i].done && !grid.seats[i].waits;
  if (able == 0 && grid.alive > 0) fail("a grid barrier that not all blocks reach, or a number that none writes");
  if (able == 0) return;
  unsigned chosen = grid.random.below(able), next = 0;
  while (grid.seats[next].done || grid.seats[next].waits || chosen-- > 0) ++next;
  Grid::Seat& own = grid.seats[block->index.x];
  if (&grid.seats[next] == &own) return;
  own.turn = 0;
  give_turn(grid.seats[next]);
  if (!own.done) sleep_until_turn(own);
}

// Other blocks run until `number` is no longer `old`; each that waits looks again when one has done what it may wait for.
HIDDEN_FROM_TSAN inline void wait_for_change(const uint64_t& number, uint64_t old) {
  while (number == old) {
    block->grid.seats[block->index.x].waits = true;
    pass_turn();
  }
}

// All threads of this block wait for the grid: the last block to do so lets every block go on.
HIDDEN_FROM_TSAN inline void arrive_at_grid_barrier() {
  Grid& grid = block->grid;
  const uint64_t phase = grid.barrier.phase;
  if (++grid.barrier.arrived == grid.count) {
    grid.barrier.arrived = 0;
    ++grid.barrier.phase;
    wake_blocks();
  }
  wait_for_change(grid.barrier.phase, phase);
  block->at_grid_barrier = 0;
  wake_threads(grid.barrier);
}

// Of this block's threads that wait for an atomic number to be written, the one that has done so for longest, or nullptr.
HIDDEN_FROM_TSAN inline const Fiber* first_waiting_reader() {
  const Fiber* first = nullptr;
  for (const Fiber* fiber = &block->fibers[0]; fiber != &block->fibers[block->size.x]; ++fiber)
    if (fiber->waits_for == &block->grid.written && (!first || fiber->seen_writes < first->seen_writes)) first = fiber;
  return first;
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
    } else if (const Fiber* reader = first_waiting_reader()) {
      wait_for_change(block->grid.writes, reader->seen_writes);
      wake_threads(block->grid.written);
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
  struct alignas(16) Sixteen {
    char bytes[16];
  };
  std::unique_ptr<Sixteen[]> shared(new Sixteen[(shared_bytes + 15) / 16]);
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

}  // namespace cuda_on_cpu
