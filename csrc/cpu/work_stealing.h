#pragma once

// Work stealing, for cores of unequal speed: performance and efficiency cores, or cores that other processes load too.
// Each thread owns a contiguous range of tasks and takes them from its front, so that what it wrote in one pass is in
// its cache in the next. When its range is empty it steals from the back of the longest. Results must not depend on
// which thread runs a task.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

class TaskRanges {
 public:
  TaskRanges(int64_t count, int64_t num_ranges) : ranges_(num_ranges) {
    STD_TORCH_CHECK(count <= int64_t{UINT32_MAX}, "too many tasks: ", count);
    for (int64_t i = 0; i < num_ranges; ++i)
      ranges_[i].tasks = pack(count * i / num_ranges, count * (i + 1) / num_ranges);
  }

  // The next task for the owner of range number `own`; false when all tasks are taken.
  bool take(int64_t own, int64_t& task) {
    if (pop(ranges_[own], true, task)) return true;
    for (;;) {
      Range& longest = *std::max_element(ranges_.begin(), ranges_.end(), [](const Range& one, const Range& other) {
        return one.size() < other.size();
      });
      if (pop(longest, false, task)) return true;
      // another thread emptied it meanwhile: look for the longest again, until all are empty
      const auto is_empty = [](const Range& range) { return range.size() == 0; };
      if (std::all_of(ranges_.begin(), ranges_.end(), is_empty)) return false;
    }
  }

 private:
  // Begin and end in one word, so that one compare-and-swap changes both. One cache line each, against false sharing.
  struct alignas(64) Range {
    std::atomic<uint64_t> tasks{0};
    int64_t size() const {
      const uint64_t now = tasks.load(std::memory_order_relaxed);
      return static_cast<int64_t>(now & UINT32_MAX) - static_cast<int64_t>(now >> 32);
    }
  };

  static uint64_t pack(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }

  // Relaxed: a task is taken once whatever the order, and the thread pool's barrier ends the pass.
  static bool pop(Range& range, bool front, int64_t& task) {
    uint64_t now = range.tasks.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t begin = static_cast<int64_t>(now >> 32), end = static_cast<int64_t>(now & UINT32_MAX);
      if (begin == end) return false;
      task = front ? begin : end - 1;
      if (range.tasks.compare_exchange_weak(now, front ? pack(begin + 1, end) : pack(begin, end - 1),
                                            std::memory_order_relaxed))
        return true;
    }
  }

  std::vector<Range> ranges_;
};

// Calls `work(next)` once per thread, where `next(task)` sets the thread's next task or returns false:
//   for_each_task(count, [&](auto next) { for (int64_t task; next(task);) ...; });
// Buffers are allocated once per thread, before that loop.
template <typename Work>
void for_each_task(int64_t count, const Work& work) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  if (threads == 0) return;
  TaskRanges tasks(count, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    // more than one range where the pool runs fewer threads than it promised, as in a nested parallel region
    for (int64_t own = begin; own < end; ++own) work([&tasks, own](int64_t& task) { return tasks.take(own, task); });
  });
}

}  // namespace nerve_kernels::cpu
