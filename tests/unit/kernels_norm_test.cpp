// RMSNorm: the written backward against vjp of the definition, fused against plain, and the same
// bits on any number of threads.
#include "kernels/norm.h"

#include <ATen/Parallel.h>

#include "kernels/vjp.h"
#include "kernels_support.h"

namespace picotron {
namespace {

constexpr double kEps = 1e-5;

TEST(RmsNorm, WrittenBackwardIsTheDefinitionsGradient) {
  for (const int64_t hidden : {1, 72, 509}) {
    const at::Tensor x = random_tensor({7, hidden}, at::kDouble, 1);
    const at::Tensor delta = random_tensor({7, hidden}, at::kDouble, 2);
    const at::Tensor weight = random_tensor({hidden}, at::kDouble, 3);
    const at::Tensor dy = random_tensor({7, hidden}, at::kDouble, 4);
    const at::Tensor around = random_tensor({7, hidden}, at::kDouble, 5);
    const auto judge = vjp(
        [](const std::vector<at::Tensor>& in) {
          return add_rms_norm(in[0], in[1], in[2], kEps, Body::plain).y;
        },
        {x, delta, weight});
    const auto expected = judge.pullback(dy);
    for (const Body body : {Body::fused, Body::plain}) {
      const AddNormOutput out = add_rms_norm(x, delta, weight, kEps, body);
      EXPECT_LT(distance(out.y, judge.output), kJudge);
      const at::Tensor dweight =
          at::ones({hidden}, at::kDouble);  // accumulated into, not overwritten
      const at::Tensor dx = rms_norm_backward(dy, out.sum, out.rstd, weight, around, dweight, body);
      EXPECT_LT(distance(dx, expected[0] + around), kJudge);
      EXPECT_LT(distance(dx, expected[1] + around), kJudge);
      EXPECT_LT(distance(dweight - 1, expected[2]), kJudge);
      const at::Tensor alone = rms_norm_backward(dy, out.sum, out.rstd, weight, {}, dweight, body);
      EXPECT_LT(distance(alone, expected[0]), hidden == 1 ? 1.0 : kJudge);
      EXPECT_LT((alone - expected[0]).abs().max().item<double>(), kJudge);
    }
  }
}

TEST(RmsNorm, FusedIsPlain) {
  for (const at::ScalarType dtype : kDtypes) {
    const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
    for (const int64_t hidden : {5, 72, 509, 576}) {
      const at::Tensor x = random_tensor({67, hidden}, dtype, 1);
      const at::Tensor delta = random_tensor({67, hidden}, dtype, 2);
      const at::Tensor weight = random_tensor({hidden}, dtype, 3);
      const at::Tensor dy = random_tensor({67, hidden}, dtype, 4);
      const at::Tensor around = random_tensor({67, hidden}, dtype, 5);
      const NormOutput norm = rms_norm(x, weight, kEps),
                       plain_norm = rms_norm(x, weight, kEps, Body::plain);
      EXPECT_LT(distance(norm.y, plain_norm.y), tolerance(dtype));
      const AddNormOutput fused = add_rms_norm(x, delta, weight, kEps);
      const AddNormOutput plain = add_rms_norm(x, delta, weight, kEps, Body::plain);
      EXPECT_TRUE(same_bits(fused.sum, plain.sum));
      EXPECT_LT(distance(fused.y, plain.y), tolerance(dtype));
      EXPECT_LT(distance(fused.rstd, plain.rstd), 1e-6);
      EXPECT_EQ(fused.rstd.scalar_type(), wide);
      const at::Tensor dw = at::zeros({hidden}, wide), plain_dw = at::zeros({hidden}, wide);
      const at::Tensor dx = rms_norm_backward(dy, fused.sum, fused.rstd, weight, around, dw);
      const at::Tensor plain_dx =
          rms_norm_backward(dy, plain.sum, plain.rstd, weight, around, plain_dw, Body::plain);
      EXPECT_EQ(dx.scalar_type(), dtype);
      EXPECT_LT(distance(dx, plain_dx), tolerance(dtype));
      EXPECT_LT(distance(dw, plain_dw), dtype == at::kDouble ? 1e-14 : 2e-6);
    }
  }
}

TEST(RmsNorm, WeightGradientHasTheSameBitsOnAnyNumberOfThreads) {
  const at::Tensor x = random_tensor({1031, 580}, at::kFloat, 1);
  const at::Tensor weight = random_tensor({580}, at::kFloat, 2);
  const at::Tensor dy = random_tensor({1031, 580}, at::kFloat, 3);
  const NormOutput norm = rms_norm(x, weight, kEps);
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int n : {1, 2, 3}) {
    at::set_num_threads(n);
    results.push_back(at::zeros({580}));
    rms_norm_backward(dy, x, norm.rstd, weight, {}, results.back());
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(same_bits(results[0], results[1]));
  EXPECT_TRUE(same_bits(results[0], results[2]));
}

}  // namespace
}  // namespace picotron
