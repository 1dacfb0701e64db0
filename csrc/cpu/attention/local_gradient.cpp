// The gradients of what is made of attention inside windows: only scores in a window are looked at.
//
// First the gradients of these scores, from each token to its window and from each to those whose window it is in, so
// that both products that follow are window products whose rows belong to one task each.

#include <algorithm>

#include "attention.h"
#include "window_rows.h"
#include "../work_stealing.h"

namespace nerve_kernels::cpu {
namespace {

// What of it is for one grid row of tokens: numbers by place in the window and position along the row.
template <typename Number>
class LocalGradients {
 public:
  LocalGradients(const Window& window, int64_t heads, bool normalize)
      : window_(window),
        heads_(heads),
        normalize_(normalize),
        p_size_(window.window_height * window.sums_per_row()),
        p_(heads * p_size_),
        total_(window.window_size() * window.width),
        gradient_(window.window_size() * window.width),
        mass_(window.width),
        expected_(window.width) {}

  // Room for the attention of one head, zeros.
  Number* p_of(int64_t head) {
    Number* p = p_.data() + head * p_size_;
    std::fill(p, p + p_size_, Number(0));
    return p;
  }

  // From the gradient of the row's values, (width, window size), to that of its sums before they were divided: with Z
  // the mass of a token and g those gradients, (g - sum of g * value) / Z.
  void differentiate_sums(int64_t y, const Number* weights, const Number* grad) {
    std::fill(gradient_.begin(), gradient_.end(), Number(0));
    for_places(y, [&](int64_t place, int64_t, int64_t, int64_t begin, int64_t end) {
      for (int64_t x = begin; x < end; ++x) gradient_at(place)[x] = grad[x * window_.window_size() + place];
    });
    if (!normalize_) return;
    std::fill(total_.begin(), total_.end(), Number(0));
    std::fill(mass_.begin(), mass_.end(), Number(0));
    std::fill(expected_.begin(), expected_.end(), Number(0));
    for_places(y, [&](int64_t place, int64_t dy, int64_t dx, int64_t begin, int64_t end) {
      Number* total = total_.data() + place * window_.width;
      for (int64_t head = 0; head < heads_; ++head) {
        const Number* p = p_at(head, dy, dx);
        for (int64_t x = begin; x < end; ++x) total[x] += weights[head] * p[x];
      }
      for (int64_t x = begin; x < end; ++x) mass_[x] += total[x];
      for (int64_t x = begin; x < end; ++x) expected_[x] += gradient_at(place)[x] * total[x];
    });
    for_places(y, [&](int64_t place, int64_t, int64_t, int64_t begin, int64_t end) {
      for (int64_t x = begin; x < end; ++x) {
        const Number difference = gradient_at(place)[x] - expected_[x] / mass_[x];
        gradient_at(place)[x] = has_mass(mass_[x]) ? difference / mass_[x] : Number(0);
      }
    });
  }

  // Of one head: the gradients of its scores, (tokens, window size), by token and by neighbour, those of the row's lse,
  // and the share of its weight's.
  Number write_head(int64_t y, int64_t head, Number weight, Number* by_token, Number* by_neighbour, Number* grad_lse) {
    const int64_t size = window_.window_size(), width = window_.width, first = y * width;
    Number of_weight = 0;
    std::fill(grad_lse, grad_lse + width, Number(0));
    for_places(y, [&](int64_t place, int64_t dy, int64_t dx, int64_t begin, int64_t end) {
      const Number *p = p_at(head, dy, dx), *gradient = gradient_at(place);
      const int64_t neighbour = (dy - window_.window_height / 2) * width + dx - window_.window_width / 2;
      for (int64_t x = begin; x < end; ++x) {
        const Number weighted = p[x] * gradient[x], of_score = weight * weighted;
        of_weight += weighted;
        grad_lse[x] -= of_score;
        by_token[(first + x) * size + place] = of_score;
        by_neighbour[(first + x + neighbour) * size + size - 1 - place] = of_score;
      }
    });
    return of_weight;
  }

 private:
  // Calls take(place, dy, dx, begin, end) for each place of the window and the positions whose neighbour there is on the
  // grid.
  template <typename Take>
  void for_places(int64_t y, const Take& take) const {
    for (int64_t dy = 0; dy < window_.window_height; ++dy) {
      const int64_t key_y = y + dy - window_.window_height / 2;
      if (key_y < 0 || key_y >= window_.height) continue;
      for (int64_t dx = 0; dx < window_.window_width; ++dx) {
        const int64_t step = dx - window_.window_width / 2;
        take(dy * window_.window_width + dx, dy, dx, std::max<int64_t>(0, -step),
             std::min(window_.width, window_.width - step));
      }
    }
  }

  const Number* p_at(int64_t head, int64_t dy, int64_t dx) const {
    return p_.data() + head * p_size_ + dy * window_.sums_per_row() + dx * window_.width_padded;
  }
  Number* gradient_at(int64_t place) { return gradient_.data() + place * window_.width; }

  Window window_;
  int64_t heads_;
  bool normalize_;
  int64_t p_size_;
  std::vector<Number> p_, total_, gradient_, mass_, expected_;
};

// out = scale * the window product of each head, (heads, N, d).
template <typename Number>
void multiply(const Tensor& values, const Tensor& rows, const Window& window, Number scale, Tensor& out) {
  const int64_t num_tokens = values.size(1), size = values.size(2), stride = rows.size(2), channels = out.size(3);
  const auto* value_data = static_cast<const Number*>(values.const_data_ptr());
  const auto* row_data = static_cast<const Number*>(rows.const_data_ptr());
  auto* out_data = static_cast<Number*>(out.mutable_data_ptr());
  const auto window_product = best_kernels_of<Number>().window_product;
  for_each_task(values.size(0) * window.height, [&](auto next) {
    std::vector<Number> product(window.width * stride);
    for (int64_t task; next(task);) {
      const int64_t index = task / window.height, y = task % window.height;
      const int64_t first = index * num_tokens + y * window.width;
      std::fill(product.begin(), product.end(), Number(0));
      WindowRow<Number> row = {};
      row.values = value_data + first * size;
      row.p = row_data + index * num_tokens * stride;
      row.out = product.data();
      row.scale = scale;
      row.stride = stride;
      row.y = y;
      row.height = window.height;
      row.width = row.x_end = window.width;
      row.window_height = window.window_height;
      row.window_width = window.window_width;
      window_product(row);
      for (int64_t x = 0; x < window.width; ++x)
        std::copy_n(product.data() + x * stride, channels, out_data + (first + x) * channels);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> local_gradient(Tensor grad, Tensor q, Tensor k, Tensor w, Tensor lse,
                                                          std::vector<int64_t> grid, std::vector<int64_t> window,
                                                          double scale, bool normalize) {
  check_window_inputs(q, k, w, lse, grid, window);
  const int64_t batch = q.size(0), heads = q.size(1), num_tokens = q.size(2), channels = q.size(3);
  const int64_t size = window[0] * window[1];
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == batch && grad.size(1) == num_tokens && grad.size(2) == size &&
                      grad.scalar_type() == lse.scalar_type(),
                  "grad: expected the shape and dtype of the result");
  const ScalarType dtype = lse.scalar_type();
  Tensor grad_q = allocate(q, {batch, heads, num_tokens, channels}, dtype);
  Tensor grad_k = allocate(k, {batch, heads, num_tokens, channels}, dtype);
  Tensor grad_w = allocate_zeros(w, {batch, heads}, dtype);
  Tensor grad_lse = allocate(lse, {batch, heads, num_tokens}, dtype);
  if (q.numel() == 0) return {grad_q, grad_k, grad_w, grad_lse};
  grad = torch::stable::contiguous(grad);
  lse = torch::stable::contiguous(lse);
  with_number(is_double(lse), [&](auto number) {
    using Number = decltype(number);
    const Window geometry(grid, window, best_kernels_of<Number>().lanes);
    const std::vector<Number> weights = read_weights<Number>(w);
    const Tokens queries(q);
    const Tensor packed_keys = pack_key_rows<Number>(k, geometry);
    Tensor by_token = allocate(q, {batch * heads, num_tokens, size}, dtype);
    Tensor by_neighbour = allocate(q, {batch * heads, num_tokens, size}, dtype);
    auto* token_data = static_cast<Number*>(by_token.mutable_data_ptr());
    auto* neighbour_data = static_cast<Number*>(by_neighbour.mutable_data_ptr());
    const auto* grad_data = static_cast<const Number*>(grad.const_data_ptr());
    auto* lse_gradient = static_cast<Number*>(grad_lse.mutable_data_ptr());
    std::vector<Number> of_weights(batch * heads * geometry.height);
    for_each_task(batch * geometry.height, [&](auto next) {
      WindowRows<Number> rows(queries, packed_keys, static_cast<const Number*>(lse.const_data_ptr()), geometry,
                              static_cast<Number>(scale));
      LocalGradients<Number> gradients(geometry, heads, normalize);
      for (int64_t task; next(task);) {
        const int64_t b = task / geometry.height, y = task % geometry.height;
        for (int64_t head = 0; head < heads; ++head) rows.add(b, head, y, Number(1), gradients.p_of(head));
        gradients.differentiate_sums(y, weights.data() + b * heads, grad_data + (b * num_tokens + y * geometry.width) * size);
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t index = b * heads + head;
          of_weights[index * geometry.height + y] =
              gradients.write_head(y, head, weights[index], token_data + index * num_tokens * size,
                                   neighbour_data + index * num_tokens * size,
                                   lse_gradient + index * num_tokens + y * geometry.width);
        }
      }
    });
    auto* weight_gradient = static_cast<Number*>(grad_w.mutable_data_ptr());
    for (int64_t index = 0; index < batch * heads; ++index)
      for (int64_t y = 0; y < geometry.height; ++y) weight_gradient[index] += of_weights[index * geometry.height + y];
    const int64_t stride = padded_labels<Number>(channels);
    multiply(by_token, pack_all_rows<Number>(k, stride), geometry, static_cast<Number>(scale), grad_q);
    multiply(by_neighbour, pack_all_rows<Number>(q, stride), geometry, static_cast<Number>(scale), grad_k);
  });
  return {grad_q, grad_k, grad_w, grad_lse};
}

}  // namespace nerve_kernels::cpu
