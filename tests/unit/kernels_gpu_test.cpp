// The fused kernels on a GPU against the plain bodies in float64 on a CPU, and the same bits twice.
// (That they compute the right thing is tested on every machine: kernels_instruction_sets_test.)
#include <fmt/format.h>

#include <limits>

#include "gpu.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/fused_dispatch.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "kernels_support.h"

namespace picotron {
namespace {

constexpr int64_t kTokens = 1031;

// fp32, or rounded to bf16, of numbers that both sides have exactly.
double limit(at::ScalarType dtype) {
  return dtype == at::kFloat ? 1e-5 : 2e-2;
}
at::Tensor wide(const at::Tensor& x) {
  return x.defined() ? x.to(at::kCPU, at::kDouble) : x;
}

TEST(FusedKernels, ArePlainOnAGpu) {
  const auto device = gpu_or_null();
  if (device == nullptr) GTEST_SKIP() << "not run: no GPU here, or no CUDA plug-in";
  const c10::Device there = device->torch();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const double close = limit(dtype);
    const auto random = [&](at::IntArrayRef sizes, uint64_t seed) {
      return random_tensor(sizes, dtype, seed).to(there);
    };
    for (const int64_t hidden : {5, 509, 576, 4104}) {
      SCOPED_TRACE(fmt::format("{}, hidden {}", at::toString(dtype), hidden));
      const at::Tensor x = random({kTokens, hidden}, 1), delta = random({kTokens, hidden}, 2);
      const at::Tensor weight = random({hidden}, 3), dy = random({kTokens, hidden}, 4);
      ASSERT_TRUE(runs_fused(Body::fused, {x}));
      const AddNormOutput out = add_rms_norm(x, delta, weight, 1e-5);
      EXPECT_TRUE(same_bits(out.sum, x + delta));
      const NormOutput exact = rms_norm(wide(out.sum), wide(weight), 1e-5, Body::plain);
      EXPECT_LT(distance(out.y.cpu(), exact.y), close);
      EXPECT_LT(distance(out.rstd.cpu(), exact.rstd), 1e-5);
      const at::Tensor dw = at::ones({hidden}, out.rstd.options()), exact_dw = wide(dw);
      const at::Tensor dx = rms_norm_backward(dy, out.sum, out.rstd, weight, delta, dw);
      EXPECT_LT(
          distance(dx.cpu(), rms_norm_backward(wide(dy), wide(out.sum), exact.rstd, wide(weight),
                                               wide(delta), exact_dw, Body::plain)),
          close);
      EXPECT_LT(distance(dw.cpu(), exact_dw), 1e-5);
      const at::Tensor again = at::ones_like(dw);
      EXPECT_TRUE(same_bits(dx, rms_norm_backward(dy, out.sum, out.rstd, weight, delta, again)));
      EXPECT_TRUE(same_bits(dw, again));

      const at::Tensor gate_up = random({kTokens, 2 * hidden}, 5);
      EXPECT_LT(distance(swiglu(gate_up).cpu(), swiglu(wide(gate_up), Body::plain)), close);
      EXPECT_LT(distance(swiglu_backward(dy, gate_up).cpu(),
                         swiglu_backward(wide(dy), wide(gate_up), Body::plain)),
                close);

      const at::Tensor logits = random({kTokens, hidden}, 6) * 4, exact_logits = wide(logits);
      const at::Tensor targets = at::arange(kTokens, at::kLong);  // most beyond these columns
      const at::Tensor statistics = cross_entropy_statistics(logits, targets.to(there), 3);
      const at::Tensor plain = cross_entropy_statistics(exact_logits, targets, 3, Body::plain);
      EXPECT_LT(distance(statistics.cpu(), plain), 1e-5);
      const at::Tensor lse = plain.select(1, 0) + plain.select(1, 1).log();
      cross_entropy_gradient_(logits, targets.to(there), 3, lse.to(there, at::kFloat), 0.5);
      cross_entropy_gradient_(exact_logits, targets, 3, lse, 0.5, Body::plain);
      EXPECT_LT(distance(logits.cpu(), exact_logits), close);
    }
    const at::Tensor positions = at::arange(kTokens, at::kLong);
    for (const int64_t head_dim : {18, 64, 128}) {
      const auto tables = [&](at::ScalarType kind, c10::Device where) {
        return rope_tables(kTokens, head_dim, 1e4, std::nullopt, kind, where);
      };
      const at::Tensor qkv = random({kTokens, 4 * head_dim}, 7), exact = wide(qkv);
      const auto turned = [&](const at::Tensor& all) {
        return all.narrow(1, 0, 3 * head_dim).unflatten(1, {3, head_dim});
      };
      apply_rope_(turned(qkv), positions.to(there), tables(dtype, there), false);
      apply_rope_(turned(exact), positions, tables(at::kDouble, at::kCPU), false, Body::plain);
      EXPECT_LT(distance(qkv.cpu(), exact), dtype == at::kFloat ? 1e-4 : close);  // fp32 angles
    }
    const at::Tensor x = random({3 * fused::kSquaresBlock + 17}, 8);
    const double exact = sum_of_squares(wide(x), Body::plain).item<double>();
    EXPECT_NEAR(sum_of_squares(x).item<double>(), exact, 1e-12 * exact);
  }
}

TEST(FusedOptimizers, ArePlainOnAGpu) {
  const auto device = gpu_or_null();
  if (device == nullptr) GTEST_SKIP() << "not run: no GPU here, or no CUDA plug-in";
  for (const int64_t first : {0, 1}) {  // of a slice: from 1 on nothing is aligned
    const auto slice = [&](uint64_t seed) {
      return random_tensor({40008 + first}, at::kFloat, seed).to(device->torch()).slice(0, first);
    };
    const at::Tensor master = slice(1), m = slice(2), v = slice(3).square_(), gradient = slice(4);
    const at::Tensor copy = slice(1).to(at::kBFloat16);
    const AdamWOptions options = kThirdUpdate;
    at::Tensor scale = at::scalar_tensor(0.5, master.options());
    const auto step = [&] {
      const at::Tensor w = wide(master), exact_m = wide(m), exact_v = wide(v);
      adamw_(master, m, v, gradient, copy, scale, options);
      adamw_(w, exact_m, exact_v, wide(gradient), {}, wide(scale), options, Body::plain);
      sgd_(master, gradient, copy, scale, 1e-2, 0.1);
      sgd_(w, wide(gradient), {}, wide(scale), 1e-2, 0.1, Body::plain);
      EXPECT_LT(distance(master.cpu(), w), 1e-6);
      EXPECT_LT(distance(m.cpu(), exact_m), 1e-6);
      EXPECT_LT(distance(v.cpu(), exact_v), 1e-6);
      EXPECT_TRUE(same_bits(copy, master.to(at::kBFloat16)));
    };
    step();
    const std::vector<at::Tensor> before = {master.clone(), m.clone(), v.clone(), copy.clone()};
    scale.fill_(std::numeric_limits<double>::quiet_NaN());
    adamw_(master, m, v, gradient, copy, scale, options);
    sgd_(master, gradient, copy, scale, 1e-2, 0.1);
    EXPECT_TRUE(same_bits(master, before[0]) && same_bits(m, before[1]));
    EXPECT_TRUE(same_bits(v, before[2]) && same_bits(copy, before[3]));
  }
}

}  // namespace
}  // namespace picotron
