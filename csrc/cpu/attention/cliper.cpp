// Seeds under the product of all heads' sharpened attention, the last head first. The scores of a head are computed once:
// what of them may survive the threshold is listed, and multiplied when the largest of every column is known.
//
// Lists have room for kListedPerRow entries a row, whatever the number of keys. Rows whose list is longer are computed
// anew under the final bounds, to the same bits.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>

#include "../walk/labels.h"
#include "../work_stealing.h"
#include "attention.h"
#include "attention_inputs.h"

namespace nerve_kernels::cpu {
namespace {

constexpr double kEpsilon = 1e-5;  // of CLIPer's code: added to the largest of a column and to the sum of a row
constexpr int64_t kListedPerRow = 1024;
constexpr int64_t kScoreBytes = 320 << 10;  // of the rows of one task: they and a strip of keys stay in L2
constexpr int64_t kSampling = 16;           // every so-many-th row tells beforehand how large columns are, at least
constexpr double kSlack = 1e-3;             // what exp and log may be off where a bound is compared with a share

template <typename Number>
class Chain {
 public:
  Chain(const Tensor& q, const Tensor& k, double scale, double threshold, int64_t stride)
      : kernels_(best_kernels_of<Number>()),
        tile_(kernels_.tile),
        queries_(q),
        keys_(k, tile_),
        tokens_(k.size(2)),
        padded_keys_(keys_.panels() * tile_.keys),
        strip_keys_(round_up(padded_keys_, tile_.keys_at_once())),
        stride_(stride),
        scale_(static_cast<Number>(scale)),
        threshold_(static_cast<Number>(threshold)),
        groups_each_(std::clamp<int64_t>(kScoreBytes / (tile_.rows * strip_keys_ * static_cast<int64_t>(sizeof(Number))), 1,
                                         kGroupsAtOnce)),
        rows_each_(groups_each_ * tile_.rows),
        tasks_(ceil_div(tokens_, rows_each_)),
        room_(std::min(kListedPerRow, tokens_) * rows_each_),
        listed_values_(new Number[tasks_ * room_]),
        listed_keys_(new int32_t[tasks_ * room_]),
        counts_(tokens_),
        overflows_(tasks_) {
    const double log_threshold = std::log(threshold);
    drop_ = lowest_if_infinite(log_threshold - kSlack);
    least_ = lowest_if_infinite(log_threshold + std::log(kEpsilon) - kSlack);
  }

  // out = A p of one head.
  void apply(int64_t b, int64_t head, const Number* p, Number* out) {
    b_ = b, head_ = head;
    maxima_.assign(padded_keys_, -std::numeric_limits<Number>::max());
    is_broken_ = false;
    if (tokens_ >= kSampling * tile_.rows) look_at_samples();
    list_rows();
    if (is_broken_) return std::fill(out, out + tokens_ * stride_, std::numeric_limits<Number>::quiet_NaN());
    shares_.resize(padded_keys_);
    for (int64_t key = 0; key < tokens_; ++key)
      shares_[key] = Number(1) / (std::exp(maxima_[key]) + static_cast<Number>(kEpsilon));
    multiply_rows(p, out);
  }

 private:
  // What a thread needs to list the rows of a task.
  struct Scratch {
    explicit Scratch(const Chain& chain)
        : q(chain.rows_each_ * chain.queries_.channels),
          scores(new(std::align_val_t{64}) Number[chain.rows_each_ * chain.strip_keys_]),
          list_stride(chain.strip_keys_),
          values(new Number[chain.rows_each_ * list_stride + 64]),
          keys(new int32_t[chain.rows_each_ * list_stride + 64]),
          maxima(chain.maxima_) {}
    struct Free {
      void operator()(Number* numbers) const { ::operator delete[](numbers, std::align_val_t{64}); }
    };
    std::vector<Number> q;
    std::unique_ptr<Number[], Free> scores;
    int64_t list_stride;
    std::unique_ptr<Number[]> values;
    std::unique_ptr<int32_t[]> keys;
    std::vector<Number> maxima;
  };

  static Number lowest_if_infinite(double number) {
    return std::isfinite(number) ? static_cast<Number>(number) : -std::numeric_limits<Number>::max();
  }

  void list(const Tokens& queries, int64_t first, int64_t rows, bool maxima_only, Scratch& scratch, int64_t* counts) {
    pack_groups(queries, b_, head_, first, rows, scale_, tile_, scratch.q.data());
    AttentionListTask<Number> task = {};
    task.q = scratch.q.data();
    task.k = keys_.panel(b_, head_, 0);
    task.rows = rows;
    task.keys = tokens_;
    task.head_size = queries.channels;
    task.least = least_;
    task.drop = drop_;
    task.maxima = scratch.maxima.data();
    task.scores = scratch.scores.get();
    task.values = maxima_only ? nullptr : scratch.values.get();
    task.list_keys = scratch.keys.get();
    task.list_stride = scratch.list_stride;
    task.counts = counts;
    kernels_.list_attention(task);
  }

  void merge(const Scratch& scratch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t key = 0; key < padded_keys_; ++key) maxima_[key] = std::max(maxima_[key], scratch.maxima[key]);
  }

  void look_at_samples() {
    Tokens sample = queries_;
    sample.count = ceil_div(queries_.count, kSampling);
    sample.stride[2] *= kSampling;
    for_each_task(ceil_div(sample.count, rows_each_), [&](auto next) {
      Scratch scratch(*this);
      std::vector<int64_t> counts(rows_each_);
      for (int64_t task; next(task);) {
        const int64_t first = task * rows_each_;
        list(sample, first, std::min(rows_each_, sample.count - first), true, scratch, counts.data());
      }
      merge(scratch);
    });
  }

  void list_rows() {
    for_each_task(tasks_, [&](auto next) {
      Scratch scratch(*this);
      for (int64_t task; next(task);) {
        const int64_t first = task * rows_each_, rows = std::min(rows_each_, tokens_ - first);
        int64_t* counts = counts_.data() + first;
        list(queries_, first, rows, false, scratch, counts);
        int64_t total = 0;
        for (int64_t row = 0; row < rows; ++row) {
          if (counts[row] < 0) is_broken_ = true;
          total += std::max<int64_t>(counts[row], 0);
        }
        overflows_[task] = total > room_;
        if (overflows_[task]) continue;
        Number* values = listed_values_.get() + task * room_;
        int32_t* keys = listed_keys_.get() + task * room_;
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t from = row * scratch.list_stride, count = std::max<int64_t>(counts[row], 0);
          values = std::copy_n(scratch.values.get() + from, count, values);
          keys = std::copy_n(scratch.keys.get() + from, count, keys);
        }
      }
      merge(scratch);
    });
  }

  void multiply_rows(const Number* p, Number* out) {
    for_each_task(tasks_, [&](auto next) {
      std::unique_ptr<Scratch> scratch;
      for (int64_t task; next(task);) {
        const int64_t first = task * rows_each_, rows = std::min(rows_each_, tokens_ - first);
        Number* values = listed_values_.get() + task * room_;
        int32_t* keys = listed_keys_.get() + task * room_;
        if (overflows_[task]) {
          if (!scratch) scratch = std::make_unique<Scratch>(*this);
          list(queries_, first, rows, false, *scratch, counts_.data() + first);
          values = scratch->values.get(), keys = scratch->keys.get();
        }
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t count = counts_[first + row];
          SharpenedRow<Number> sharpened = {};
          sharpened.values = values;
          sharpened.list_keys = keys;
          sharpened.count = count;
          sharpened.shares = shares_.data();
          sharpened.threshold = threshold_;
          sharpened.epsilon = static_cast<Number>(kEpsilon);
          sharpened.p = p;
          sharpened.out = out + (first + row) * stride_;
          sharpened.stride = stride_;
          kernels_.sharpened_row(sharpened);
          values += overflows_[task] ? scratch->list_stride : count;
          keys += overflows_[task] ? scratch->list_stride : count;
        }
      }
    });
  }

  const KernelsOf<Number>& kernels_;
  const TileSizes& tile_;
  Tokens queries_;
  PackedKeys<Number> keys_;
  int64_t tokens_, padded_keys_, strip_keys_, stride_;
  Number scale_, threshold_, drop_, least_;
  int64_t groups_each_, rows_each_, tasks_, room_;
  std::unique_ptr<Number[]> listed_values_;
  std::unique_ptr<int32_t[]> listed_keys_;
  std::vector<int64_t> counts_;
  std::vector<char> overflows_;
  int64_t b_ = 0, head_ = 0;
  std::vector<Number> maxima_, shares_;
  std::atomic<bool> is_broken_{false};
  std::mutex mutex_;
};

}  // namespace

Tensor cliper(Tensor q, Tensor k, Tensor seeds, double scale, double threshold) {
  check_queries_and_keys(q, k);
  STD_TORCH_CHECK(seeds.dim() == 3 && seeds.size(0) == q.size(0) && seeds.size(1) == q.size(2) &&
                      k.size(2) == q.size(2),
                  "seeds: expected (B, N, C) with the batch and tokens of q and k");
  STD_TORCH_CHECK(k.size(2) < std::numeric_limits<int32_t>::max(), "k: expected fewer than 2^31 keys");
  Tensor refined = allocate(seeds, {seeds.size(0), seeds.size(1), seeds.size(2)});
  if (refined.numel() == 0) return refined;
  const bool any_double = is_double(q) || is_double(k) || is_double(seeds);
  with_number(any_double, [&](auto number) {
    using Number = decltype(number);
    const int64_t tokens = seeds.size(1), heads = q.size(1);
    const int64_t stride = round_up(seeds.size(2), best_kernels_of<Number>().lanes);
    Tensor packed = pack_labels<Number>(seeds, stride);
    Tensor other = allocate(packed, {tokens, stride});
    Chain<Number> chain(q, k, scale, threshold, stride);
    for (int64_t b = 0; b < seeds.size(0); ++b) {
      Number* p = static_cast<Number*>(packed.mutable_data_ptr()) + b * tokens * stride;
      Number* next = static_cast<Number*>(other.mutable_data_ptr());
      for (int64_t head = heads - 1; head >= 0; --head) {
        chain.apply(b, head, p, next);
        std::swap(p, next);
      }
      store_labels(p, stride, b, 0, tokens, false, refined);
    }
  });
  return refined;
}

}  // namespace nerve_kernels::cpu
