// SwiGLU: the written backward against vjp, fused against plain, far out on both sides of the
// sigmoid.
#include "kernels/swiglu.h"

#include "kernels/vjp.h"
#include "kernels_support.h"

namespace picotron {
namespace {

TEST(SwiGlu, WrittenBackwardIsTheDefinitionsGradient) {
  for (const int64_t width : {1, 36, 509}) {
    const at::Tensor gate_up = random_tensor({7, 2 * width}, at::kDouble, 1) * 3;
    const at::Tensor dy = random_tensor({7, width}, at::kDouble, 2);
    const auto judge = vjp(
        [](const std::vector<at::Tensor>& in) { return swiglu(in[0], Body::plain); }, {gate_up});
    for (const Body body : {Body::fused, Body::plain}) {
      EXPECT_LT(distance(swiglu(gate_up, body), judge.output), kJudge);
      EXPECT_LT(distance(swiglu_backward(dy, gate_up, body), judge.pullback(dy)[0]), kJudge);
    }
  }
}

TEST(SwiGlu, FusedIsPlain) {
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor gate_up = random_tensor({67, 2 * 509}, dtype, 1) * 3;
    const at::Tensor dy = random_tensor({67, 509}, dtype, 2);
    EXPECT_LT(distance(swiglu(gate_up), swiglu(gate_up, Body::plain)), tolerance(dtype));
    EXPECT_LT(distance(swiglu_backward(dy, gate_up), swiglu_backward(dy, gate_up, Body::plain)),
              tolerance(dtype));
  }
}

TEST(SwiGlu, EveryGateGivesTheExactValue) {
  // fp32 against fp64, each element by itself: the exponential is ours. Where silu is smaller than
  // 1e-30 the sigmoid nears the end of fp32, and only the absolute error counts.
  const at::Tensor gate = at::linspace(-120, 120, 480001, at::kDouble).to(at::kFloat);
  const at::Tensor y = swiglu(at::stack({gate, at::ones_like(gate)}, 1)).flatten().to(at::kDouble);
  const at::Tensor exact = at::silu(gate.to(at::kDouble));
  const at::Tensor error = (y - exact).abs() / exact.abs().clamp_min(1e-30);
  EXPECT_LT(error.max().item<double>(), 5e-7);
}

TEST(SwiGlu, NotANumberStaysSo) {
  const at::Tensor gate_up = at::full({1, 40}, std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(at::isnan(swiglu(gate_up)).all().item<bool>());
  EXPECT_TRUE(at::isnan(swiglu(gate_up.to(at::kBFloat16))).all().item<bool>());
}

}  // namespace
}  // namespace picotron
