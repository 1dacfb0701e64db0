// Weights of neighbours on tensors: checks, planes, threads around kernels/pixel_affinity.h.

#include "pixel_affinity.h"


#include <algorithm>
#include <cmath>

#include "../allocation.h"
#include "../checks.h"
#include "../dtypes.h"
#include "../kernels/kernels.h"
#include "../work_stealing.h"
#include "planes.h"
#include "stencil.h"

namespace nerve_kernels::cpu {
namespace {

using torch::stable::Tensor;

enum Normalize : int64_t { kNone = 0, kRow = 1, kSymmetric = 2 };

struct Settings {
  PixelKind kind;
  int64_t centres;
  double scale, decay;
  int64_t normalize;
};

template <typename Number>
class PixelAffinity {
 public:
  PixelAffinity(const Stencil& stencil, const Tensor& pixels, const Settings& settings)
      : stencil_(stencil), settings_(settings), pixels_(pixels), layout_(stencil, sizeof(Number), kPixelsAtOnce),
        image_(pixels, stencil, layout_, pixels.size(2)) {
    if (settings.normalize == kSymmetric) roots_ = Planes<Number>(pixels, stencil, layout_, 1);
    for (const StencilOffset& offset : stencil.offsets)
      decay_.push_back(static_cast<Number>(-settings.decay * static_cast<double>(offset.dy * offset.dy + offset.dx * offset.dx)));
  }

  // All weights of one image, to planes of `Stored`.
  template <typename Stored>
  void run(int64_t image, Stored* out) {
    image_.load(pixels_, image, 0, pixels_.columns, Number(1));
    if (settings_.normalize == kSymmetric) {
      for_rows(nullptr, [&](int64_t y, int64_t x, const PixelRow<Number>& row) {
        Number* roots = roots_.data() + layout_.at(y, x);
        for (int64_t i = 0; i < row.pixels; ++i)
          roots[i] = row.sums[i] == 0 ? Number(0) : Number(1) / std::sqrt(row.sums[i]);
      });
      roots_.fill_left(0, stencil_.height, 1);
      roots_.fill_right(0, stencil_.height, 1);
    }
    const int64_t tokens = stencil_.height * stencil_.width;
    for_rows(settings_.normalize == kSymmetric ? roots_.data() : nullptr,
             [&](int64_t y, int64_t x, const PixelRow<Number>& row) {
               Stored* to = out + y * stencil_.width + x;
               for (int64_t i = 0; i < row.offsets; ++i)
                 convert(row.values + i * kPixelsAtOnce, to + stencil_.offsets[i].column * tokens, row.pixels);
             });
  }

 private:
  // Calls `store(y, x, row)` with the weights of every piece of a row.
  template <typename Store>
  void for_rows(const Number* roots, const Store& store) {
    const int64_t count = static_cast<int64_t>(stencil_.offsets.size());
    const int64_t channels = pixels_.columns;
    for_each_task(stencil_.height, [&](auto next) {
      std::vector<int64_t> places(count), begin(count), end(count);
      std::vector<Number> values(count * kPixelsAtOnce), sums(kPixelsAtOnce);
      for (int64_t y; next(y);) {
        for (int64_t x = 0; x < stencil_.width; x += kPixelsAtOnce) {
          const int64_t pixels = std::min(kPixelsAtOnce, stencil_.width - x);
          for (int64_t i = 0; i < count; ++i) {
            const StencilOffset& offset = stencil_.offsets[i];
            const int64_t row = stencil_.neighbour_row(y, offset);
            places[i] = (row < 0 ? 0 : row - y) * layout_.pitch + offset.dx;
            begin[i] = stencil_.clamp ? 0 : std::clamp<int64_t>(-x - offset.dx, 0, pixels);
            end[i] = stencil_.clamp ? pixels : std::clamp<int64_t>(stencil_.width - x - offset.dx, begin[i], pixels);
            if (row < 0) end[i] = begin[i] = 0;
          }
          const int64_t at = layout_.at(y, x);
          const PixelRow<Number> row = {.kind = settings_.kind,
                                        .image = image_.data() + at,
                                        .channels = channels,
                                        .plane_stride = layout_.plane,
                                        .places = places.data(),
                                        .begin = begin.data(),
                                        .end = end.data(),
                                        .decay = decay_.data(),
                                        .offsets = count,
                                        .pixels = pixels,
                                        .centres = settings_.centres,
                                        .scale = static_cast<Number>(settings_.scale),
                                        .divide = settings_.normalize == kRow,
                                        .roots = roots == nullptr ? nullptr : roots + at,
                                        .values = values.data(),
                                        .sums = sums.data()};
          kernels_.pixel_affinity(row);
          store(y, x, row);
        }
      }
    });
  }

  const KernelsOf<Number>& kernels_ = best_kernels_of<Number>();
  const Stencil& stencil_;
  const Settings settings_;
  const MatrixBatch pixels_;
  const PlaneLayout layout_;
  Planes<Number> image_, roots_;
  std::vector<Number> decay_;
};

}  // namespace

Tensor pixel_affinity(Tensor pixels, std::vector<int64_t> grid, std::vector<int64_t> offsets, bool clamp, int64_t kind,
                      int64_t centres, double scale, double decay, int64_t normalize, bool bfloat16) {
  STD_TORCH_CHECK(pixels.dim() == 3, "pixels: expected (B, N, channels), got ", pixels.dim(), " dimensions");
  check_grid(grid, pixels.size(1), "pixels");
  with_dtype(pixels.scalar_type(), "pixels", [](auto) {});
  STD_TORCH_CHECK(pixels.size(2) > 0, "pixels: expected at least one channel");
  STD_TORCH_CHECK(offsets.size() % 2 == 0 && !offsets.empty(), "offsets: expected pairs (dy, dx), got ",
                  offsets.size(), " numbers");
  STD_TORCH_CHECK(kind >= 0 && kind <= 2, "kind: expected 0, 1 or 2, got ", kind);
  STD_TORCH_CHECK(normalize >= kNone && normalize <= kSymmetric, "normalize: expected 0, 1 or 2, got ", normalize);
  STD_TORCH_CHECK(kind != 0 || (clamp && normalize == kRow),
                  "kind: expected a clamped border and normalised rows with contrasts");
  const bool as_double = is_double(pixels);
  const int64_t batch = pixels.size(0), tokens = pixels.size(1), columns = static_cast<int64_t>(offsets.size()) / 2;
  const Stencil stencil(grid, offsets, clamp);
  const ScalarType dtype = bfloat16 ? ScalarType::BFloat16 : number_dtype(as_double);
  const bool all_reach = static_cast<int64_t>(stencil.offsets.size()) == columns;
  Tensor out = all_reach ? allocate(pixels, {batch, columns, tokens}, dtype)
                         : allocate_zeros(pixels, {batch, columns, tokens}, dtype);
  if (out.numel() == 0) return out;
  with_number(as_double, [&](auto number) {
    using Number = decltype(number);
    PixelAffinity<Number> affinity(stencil, pixels, {static_cast<PixelKind>(kind), centres, scale, decay, normalize});
    const auto run = [&](auto stored) {
      auto* data = static_cast<decltype(stored)*>(out.mutable_data_ptr());
      for (int64_t image = 0; image < batch; ++image) affinity.run(image, data + image * columns * tokens);
    };
    bfloat16 ? run(BFloat16{}) : run(Number{});
  });
  return out;
}

}  // namespace nerve_kernels::cpu
