#pragma once

// Tasks for threads of unequal speed: laptops have fast and slow cores, and other programs take their part of any core.
// Each thread has a share of neighbouring tasks, so that what it wrote in one pass it finds in its cache in the next;
// when it is through, it takes over the last tasks of whoever has most left. Which thread does a task must not matter.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace nerve_kernels::cpu {

class SharedTasks {
 public:
  SharedTasks(int64_t count, int64_t num_shares) : shares_(num_shares) {
    STD_TORCH_CHECK(count <= int64_t{UINT32_MAX}, "too many tasks: ", count);
    for (int64_t i = 0; i < num_shares; ++i)
      shares_[i].left = range(count * i / num_shares, count * (i + 1) / num_shares);
  }

  // The next task of the thread whose share is number `own`; false when all tasks are taken.
  bool take(int64_t own, int64_t& task) {
    if (take_from(shares_[own], true, task)) return true;
    for (;;) {
      Share& fullest = *std::max_element(shares_.begin(), shares_.end(), [](const Share& one, const Share& other) {
        return one.size() < other.size();
      });
      if (take_from(fullest, false, task)) return true;
      // emptied meanwhile: look again, until there is none that has any
      if (std::all_of(shares_.begin(), shares_.end(), [](const Share& share) { return share.size() == 0; })) return false;
    }
  }

 private:
  // First and end in one word, so that both change together. A cache line each.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
    int64_t size() const {
      const uint64_t now = left.load(std::memory_order_relaxed);
      return static_cast<int64_t>(now & UINT32_MAX) - static_cast<int64_t>(now >> 32);
    }
  };

  static uint64_t range(int64_t first, int64_t end) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(end);
  }

  // Relaxed: a task is taken once whatever the order, and the pass ends in a barrier of the thread pool.
  static bool take_from(Share& share, bool front, int64_t& task) {
    uint64_t now = share.left.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t first = static_cast<int64_t>(now >> 32), end = static_cast<int64_t>(now & UINT32_MAX);
      if (first == end) return false;
      task = front ? first : end - 1;
      if (share.left.compare_exchange_weak(now, front ? range(first + 1, end) : range(first, end - 1),
                                           std::memory_order_relaxed))
        return true;
    }
  }

  std::vector<Share> shares_;
};

// Calls `work(next)` in each thread, where `next(task)` gives the thread its next task or says that there is none:
//   for_each_task(count, [&](auto next) { for (int64_t task; next(task);) ...; });
// so that a thread allocates what it needs once, whatever it gets to do.
template <typename Work>
void for_each_task(int64_t count, const Work& work) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  if (threads == 0) return;
  SharedTasks tasks(count, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    // more than one share where the thread pool gives fewer threads than it promised: in a parallel region, say
    for (int64_t own = begin; own < end; ++own) work([&tasks, own](int64_t& task) { return tasks.take(own, task); });
  });
}

}  // namespace nerve_kernels::cpu
