// Labels to and from the type that is computed in.

#include "labels.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../allocation.h"

namespace nerve_kernels::cpu {

using torch::stable::Tensor;

template <typename Number>
void load_labels(const MatrixBatch& from, int64_t image, int64_t first, int64_t count, Number factor, int64_t stride,
                 Number* out) {
  const int64_t columns = from.columns, step = from.column_stride;
  with_dtype(from.dtype, "labels", [&](auto stored) {
    using Stored = decltype(stored);
    const auto for_tokens = [&](auto load) {
      for (int64_t token = 0; token < count; ++token, out += stride) {
        load(reinterpret_cast<const Stored*>(from.at(image, first + token, 0)));
        std::fill(out + columns, out + stride, Number(0));
      }
    };
    if (step == 1 && factor == 1)
      for_tokens([&](const Stored* row) { convert(row, out, columns); });
    else if (step == 1)
      for_tokens([&](const Stored* row) {
        for (int64_t c = 0; c < columns; ++c) out[c] = static_cast<Number>(row[c]) * factor;
      });
    else
      for_tokens([&](const Stored* row) {
        for (int64_t c = 0; c < columns; ++c) out[c] = static_cast<Number>(row[c * step]) * factor;
      });
  });
}

template <typename Number>
Tensor pack_labels(const Tensor& tensor, int64_t stride) {
  constexpr int64_t kTokensPerTask = 256;
  const MatrixBatch from(tensor);
  const int64_t tasks = (from.rows + kTokensPerTask - 1) / kTokensPerTask;
  Tensor packed = allocate(tensor, {tensor.size(0), from.rows, stride}, dtype_of<Number>);
  auto* data = static_cast<Number*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, tensor.size(0) * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / tasks, first = task % tasks * kTokensPerTask;
      load_labels(from, image, first, std::min(kTokensPerTask, from.rows - first), Number(1), stride,
                  data + (image * from.rows + first) * stride);
    }
  });
  return packed;
}

template <typename Number>
void store_labels(Number* from, int64_t stride, int64_t image, int64_t first, int64_t count, bool normalize,
                  Tensor& out) {
  constexpr int64_t kSums = 8;  // partial sums of a row, for speed and accuracy
  const int64_t labels = out.size(2), offset = (image * out.size(1) + first) * labels;
  with_dtype(out.scalar_type(), "labels", [&](auto label) {
    auto* to = static_cast<decltype(label)*>(out.mutable_data_ptr()) + offset;
    for (int64_t token = 0; token < count; ++token, from += stride, to += labels) {
      if (normalize) {
        Number sums[kSums] = {}, total = 0;
        int64_t c = 0;
        for (; c + kSums <= labels; c += kSums)
          for (int64_t i = 0; i < kSums; ++i) sums[i] += from[c + i];
        for (; c < labels; ++c) sums[c % kSums] += from[c];
        for (const Number sum : sums) total += sum;
        if (total != 0)
          for (int64_t i = 0; i < labels; ++i) from[i] /= total;
      }
      convert(from, to, labels);
    }
  });
}

template <typename Number>
Tensor finish_labels(Tensor wide, ScalarType dtype, bool normalize) {
  constexpr int64_t kTokensPerTask = 256;
  const bool same = wide.scalar_type() == dtype;
  if (same && !normalize) return wide;
  const int64_t tokens = wide.size(1), labels = wide.size(2), tasks = (tokens + kTokensPerTask - 1) / kTokensPerTask;
  Tensor out = same ? wide : allocate(wide, {wide.size(0), tokens, labels}, dtype);
  auto* data = static_cast<Number*>(wide.mutable_data_ptr());
  torch::stable::parallel_for(0, wide.size(0) * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / tasks, first = task % tasks * kTokensPerTask;
      const int64_t count = std::min(kTokensPerTask, tokens - first);
      store_labels(data + (image * tokens + first) * labels, labels, image, first, count, normalize, out);
    }
  });
  return out;
}

template Tensor finish_labels<float>(Tensor, ScalarType, bool);
template Tensor finish_labels<double>(Tensor, ScalarType, bool);
template void load_labels(const MatrixBatch&, int64_t, int64_t, int64_t, float, int64_t, float*);
template void load_labels(const MatrixBatch&, int64_t, int64_t, int64_t, double, int64_t, double*);
template Tensor pack_labels<float>(const Tensor&, int64_t);
template Tensor pack_labels<double>(const Tensor&, int64_t);
template void store_labels(float*, int64_t, int64_t, int64_t, int64_t, bool, Tensor&);
template void store_labels(double*, int64_t, int64_t, int64_t, int64_t, bool, Tensor&);

}  // namespace nerve_kernels::cpu
