// vjp, by the example of docs/adding-an-operator.md: QK-norm without a written backward, held
// against the written one of RMSNorm and against finite differences. The lines between the marks
// are the page's.
#include "kernels/vjp.h"

#include <ATen/core/grad_mode.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "core/error.h"
#include "kernels/norm.h"
#include "kernels_support.h"

namespace picotron {
namespace {

// page: begin
// saved: what backward needs. x: [tokens, heads, head_dim], weight: [head_dim].
VjpResult qk_norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto norm = [eps](const std::vector<at::Tensor>& in) {
    const at::Tensor rstd = at::rsqrt(in[0].square().mean(-1, /*keepdim=*/true) + eps);
    return in[0] * rstd * in[1];
  };
  return vjp(norm, {x, weight});
}

// Returns dx, and adds dweight to its slice of the gradient buffer.
at::Tensor qk_norm_backward(const at::Tensor& dy, const VjpResult& saved,
                            const at::Tensor& weight_gradient) {
  const std::vector<at::Tensor> gradients = saved.pullback(dy);
  weight_gradient.add_(gradients[1]);
  return gradients[0];
}
// page: end

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t first = text.find(begin) + begin.size();
  return text.substr(first, text.find(end, first) - first);
}

TEST(Vjp, ThePageShowsTheCodeThatIsTestedHere) {
  const std::string here = __FILE__;
  const std::string root = here.substr(0, here.find("tests/unit/"));
  const std::string page = text_of(root + "docs/adding-an-operator.md");
  ASSERT_FALSE(page.empty());
  EXPECT_EQ(between(page, "```cpp\n", "```"),
            between(text_of(here), "// page: begin\n", "// page: end"));
}

TEST(Vjp, QkNormWithoutAWrittenBackwardIsRmsNorm) {
  const at::NoGradGuard as_in_training;
  const at::Tensor x = random_tensor({7, 3, 18}, at::kDouble, 1);
  const at::Tensor weight = random_tensor({18}, at::kDouble, 2);
  const at::Tensor dy = random_tensor({7, 3, 18}, at::kDouble, 3);
  const at::Tensor dweight = at::zeros({18}, at::kDouble),
                   expected_dweight = at::zeros({18}, at::kDouble);
  const VjpResult saved = qk_norm_forward(x, weight, 1e-6);
  const at::Tensor dx = qk_norm_backward(dy, saved, dweight);
  const at::Tensor rows = x.view({21, 18});
  const NormOutput norm = rms_norm(rows, weight, 1e-6);
  const at::Tensor expected =
      rms_norm_backward(dy.view({21, 18}), rows, norm.rstd, weight, {}, expected_dweight);
  EXPECT_LT(distance(saved.output.view({21, 18}), norm.y), kJudge);
  EXPECT_LT(distance(dx.view({21, 18}), expected), kJudge);
  EXPECT_LT(distance(dweight, expected_dweight), kJudge);
  EXPECT_FALSE(saved.output.requires_grad());
  EXPECT_FALSE(at::GradMode::is_enabled());
}

TEST(Vjp, AgreesWithFiniteDifferences) {
  const at::Tensor x = random_tensor({2, 3, 4}, at::kDouble, 1);
  const at::Tensor weight = random_tensor({4}, at::kDouble, 2);
  const at::Tensor dy = random_tensor({2, 3, 4}, at::kDouble, 3);
  const at::Tensor gradient = qk_norm_forward(x, weight, 1e-6).pullback(dy)[0];
  constexpr double h = 1e-5;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const auto moved = [&](double by) {
      at::Tensor y = x.clone();
      y.view({-1})[i] += by;
      return (qk_norm_forward(y, weight, 1e-6).output * dy).sum().item<double>();
    };
    EXPECT_NEAR(gradient.view({-1})[i].item<double>(), (moved(h) - moved(-h)) / (2 * h), 1e-8);
  }
}

TEST(Vjp, KernelsRunTheirPlainBodiesWhereAutogradRecords) {
  const at::Tensor x = random_tensor({7, 18}, at::kDouble, 1);
  const at::Tensor weight = random_tensor({18}, at::kDouble, 2);
  const auto result =
      vjp([](const std::vector<at::Tensor>& in) { return rms_norm(in[0], in[1], 1e-6).y; },
          {x, weight});
  const auto gradients = result.pullback(at::ones_like(x));
  EXPECT_GT(gradients[0].abs().max().item<double>(), 0);
  EXPECT_GT(gradients[1].abs().max().item<double>(), 0);
}

TEST(Vjp, AnInputWithoutInfluenceHasAGradientOfZero) {
  const at::Tensor x = random_tensor({3}, at::kDouble, 1);
  const auto result = vjp([](const std::vector<at::Tensor>& in) { return in[0] * 2; }, {x, x});
  EXPECT_TRUE(
      same_bits(result.pullback(at::ones({3}, at::kDouble))[1], at::zeros({3}, at::kDouble)));
}

TEST(Vjp, RefusesAFunctionThatLeavesAutograd) {
  const at::Tensor x = random_tensor({3}, at::kDouble, 1);
  EXPECT_THROW(vjp([](const std::vector<at::Tensor>& in) { return in[0].detach() * 2; }, {x}),
               BrokenInvariant);
}

TEST(Vjp, WorksInThreadsAtOnce) {
  std::vector<double> errors(4, 1);
  std::vector<std::thread> ranks;
  for (size_t rank = 0; rank < errors.size(); ++rank) {
    ranks.emplace_back([rank, &errors] {
      const at::NoGradGuard as_in_training;
      const at::Tensor x = random_tensor({50}, at::kDouble, rank);
      for (int round = 0; round < 20; ++round) {
        const auto result =
            vjp([](const std::vector<at::Tensor>& in) { return in[0].square(); }, {x});
        errors[rank] = distance(result.pullback(at::ones_like(x))[0], 2 * x);
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const double error : errors) EXPECT_EQ(error, 0);
}

}  // namespace
}  // namespace picotron
