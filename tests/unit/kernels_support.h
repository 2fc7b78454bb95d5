// What the kernels' tests share: seeded tensors, the distance of two tensors, and the tolerance of
// a dtype.
#pragma once
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "kernels/adamw.h"

namespace picotron {

inline at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kDouble)).to(dtype);
}

// max|a − b| / max|b| over the whole tensor.
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  const at::Tensor exact = b.to(at::kDouble);
  const double size = exact.abs().max().item<double>();
  return (a.to(at::kDouble) - exact).abs().max().item<double>() / (size > 0 ? size : 1);
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return at::equal(a, b);
}

// Fused against plain: both compute in fp32 (fp64) and round once.
inline double tolerance(at::ScalarType dtype) {
  if (dtype == at::kDouble) return 1e-14;
  return dtype == at::kFloat ? 1e-6 : 1e-2;
}

inline constexpr AdamWOptions kThirdUpdate = {.learning_rate = 1e-2,
                                              .beta1 = 0.9,
                                              .beta2 = 0.95,
                                              .eps = 1e-8,
                                              .weight_decay = 0.1,
                                              .step = 3};

inline constexpr at::ScalarType kDtypes[] = {at::kBFloat16, at::kFloat, at::kDouble};
inline constexpr double kJudge = 1e-10;  // a written backward against vjp, in float64

}  // namespace picotron
