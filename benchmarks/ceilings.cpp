// What this machine can do at most, in three loops that do nothing else: fused multiply-adds in registers, reads of
// memory, exponentials in registers. Compiled by ceilings.py with -march=native, for the machine it runs on.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INSTRUCTION_SET ceilings
#include "vector_math.h"

namespace {

using Lanes = nerve_kernels::cpu::ceilings::LanesOf<float>;
constexpr int kLanes = VECTOR_BYTES / sizeof(float);
// The best of so many: whatever else the machine does only ever takes away.
constexpr int kRepeats = 15;
// More chains than latency times units needs, and few enough for 16 registers.
constexpr int kChains = 12;

// Operations for each second of the slowest thread's time, all threads together, best of `repeats`.
double rate(int threads, int repeats, double operations, const std::function<void(int)>& work) {
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (int thread = 0; thread < threads; ++thread) team.emplace_back(work, thread);
    for (auto& member : team) member.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, threads * operations / seconds.count());
  }
  return best;
}

// What the compiler must not see through.
template <typename Value>
inline void keep(Value& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

}  // namespace

extern "C" {

// Floating-point operations a second; a fused multiply-add is two.
double fused_multiply_add_rate(int threads) {
  constexpr int64_t kSteps = 1 << 22;
  return rate(threads, kRepeats, 2.0 * kSteps * kChains * kLanes, [](int thread) {
    Lanes factor = Lanes{} + 0.999f, term = Lanes{} + 1e-3f * float(thread + 1), chain[kChains];
    // opaque, and each another: chains that start alike are one chain to the compiler
    for (int c = 0; c < kChains; ++c) {
      chain[c] = term * float(c + 1);
      keep(chain[c]);
    }
    for (int64_t step = 0; step < kSteps; ++step) {
      keep(factor);
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * factor + term;
    }
    for (auto& c : chain) keep(c);
  });
}

// Bytes read a second, from arrays that no cache holds.
double read_rate(int threads) {
  constexpr int64_t kVectors = (int64_t(1) << 27) / VECTOR_BYTES;
  std::vector<std::vector<float>> arrays(threads, std::vector<float>(kVectors * kLanes, 1.0f));
  return rate(threads, kRepeats, double(kVectors) * VECTOR_BYTES, [&](int thread) {
    const float* from = arrays[thread].data();
    Lanes sum[8] = {};
    for (int64_t vector = 0; vector < kVectors; vector += 8) {
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) sum[s] += nerve_kernels::cpu::ceilings::load<float>(from + (vector + s) * kLanes);
    }
    for (auto& s : sum) keep(s);
  });
}

// Exponentials a second: the extension's own, on arguments in registers, summed.
double exponential_rate(int threads) {
  constexpr int64_t kSteps = 1 << 22;
  constexpr int kAtOnce = 4;
  return rate(threads, kRepeats, double(kSteps) * kAtOnce * kLanes, [](int thread) {
    Lanes argument[kAtOnce], sum[kAtOnce] = {};
    for (int i = 0; i < kAtOnce; ++i) argument[i] = Lanes{} - 1.5f * float(i + thread);
    for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; ++i) {
        keep(argument[i]);
        sum[i] += nerve_kernels::cpu::ceilings::exp_normal<float>(argument[i]);
      }
    }
    for (auto& s : sum) keep(s);
  });
}

}  // extern "C"
