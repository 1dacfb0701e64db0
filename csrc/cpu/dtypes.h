#pragma once

// Running a template for a tensor's dtype, and numbers from one type to another.

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace nerve_kernels::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

template <typename Number>
constexpr ScalarType dtype_of = std::is_same_v<Number, double> ? ScalarType::Double : ScalarType::Float;

template <typename To, typename From>
To convert_one(From from) {
  if constexpr (std::is_same_v<From, double> && !std::is_same_v<To, float> && !std::is_same_v<To, double>)
    return static_cast<To>(static_cast<float>(from));
  else
    return static_cast<To>(from);
}

template <typename To, typename From>
void convert(const From* from, To* to, int64_t count) {
  if constexpr (std::is_same_v<To, From>) {
    if (count > 0) std::memcpy(to, from, count * sizeof(To));  // what is empty may have no address
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = convert_one<To>(from[i]);
  }
}

// Calls `function` with a number of the given dtype.
template <typename Function>
void with_dtype(ScalarType dtype, const char* name, Function&& function) {
  switch (dtype) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(BFloat16{});
    case ScalarType::Half: return function(Half{});
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16, got ", dtype,
                      "; convert it first");
  }
}

inline bool is_double(const torch::stable::Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }
inline ScalarType number_dtype(bool is_double) { return is_double ? ScalarType::Double : ScalarType::Float; }

// Calls `function` with a double or a float: the type in which everything is computed.
template <typename Function>
void with_number(bool is_double, Function&& function) {
  if (is_double)
    function(double{});
  else
    function(float{});
}

}  // namespace nerve_kernels::cpu
