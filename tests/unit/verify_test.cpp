// What verify says of two runs that differ: doctored traces, each wrong in one figure. Which breaks
// of the program itself it was seen to name is in docs/parity.md.
#include "train/verify.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace picotron {
namespace {

Trace trace_of_one_rank() {
  Config config;
  config.training.micro_batch_size = 2;
  config.training.gradient_accumulation_steps = 2;
  const LlamaConfig model{.name = "test",
                          .vocab_size = 64,
                          .hidden_size = 64,
                          .intermediate_size = 64,
                          .num_hidden_layers = 2,
                          .num_attention_heads = 4,
                          .num_key_value_heads = 2,
                          .head_dim = 8,
                          .rms_norm_eps = 1e-5};
  return trace_as_threads(shrink(config, model, DType::float64, OptimizerKind::sgd));
}

const std::string kName = "model.layers.1.mlp.up_proj.weight";

class FirstWrongTest : public ::testing::Test {
 protected:
  FirstWrong found() const { return first_wrong(mine, reference, tolerance_of(DType::float64)); }
  const Trace reference = trace_of_one_rank();
  Trace mine = trace_of_one_rank();
};

TEST_F(FirstWrongTest, IsNothingWhereRunsAgree) {
  EXPECT_EQ(found().figure, "");
}

TEST_F(FirstWrongTest, IsAnInitialValueRatherThanItsConsequences) {
  mine.initial.at(kName)[3][2] += 1e-3;
  mine.steps[0].loss *= 1.1;
  EXPECT_EQ(found().figure, "initial values");
  EXPECT_EQ(found().remark.substr(0, 7), "1 of 21");
  EXPECT_EQ(found().worst.name, kName);
}

TEST_F(FirstWrongTest, NamesTheTensorAndItsElement) {
  at::Tensor& gradient = mine.steps[1].gradients.at(kName);
  gradient[3][2] += 1e-3;
  mine.steps[2].loss *= 1.1;
  EXPECT_EQ(found().figure, "gradients of step 2");
  EXPECT_EQ(found().worst.name, kName);
  EXPECT_EQ(found().worst.index, 3 * gradient.size(1) + 2);
}

TEST_F(FirstWrongTest, FindsAWrongScaleAndBlamesNoTensor) {
  for (auto& [name, gradient] : mine.steps[0].gradients) gradient.mul_(4);
  EXPECT_EQ(found().figure, "gradients of step 1");
  EXPECT_EQ(found().remark, "21 of 21 tensors, 4 times those of one rank");
  EXPECT_EQ(found().worst.name, "");
}

TEST_F(FirstWrongTest, FindsWhatANormCountsTwice) {
  Trace::Step& step = mine.steps[0];
  const double right = step.grad_norm;
  const auto square = [&](const std::string& name) {
    return step.gradients.at(name).square().sum().item<double>();
  };
  step.grad_norm = std::sqrt(right * right + square("model.embed_tokens.weight"));
  EXPECT_EQ(found().figure, "gradient norm of step 1");
  EXPECT_EQ(found().remark, "as if model.embed_tokens.weight were counted 2 times");
  EXPECT_EQ(found().worst.name, "");

  double norms = 0;
  for (const auto& [name, gradient] : step.gradients)
    if (name.ends_with("norm.weight")) norms += square(name);
  step.grad_norm = std::sqrt(right * right + 3 * norms);
  EXPECT_EQ(found().remark, "as if every norm.weight were counted 4 times");
  step.grad_norm = std::sqrt(right * right - square(kName));
  EXPECT_EQ(found().remark, "as if " + kName + " were counted 0 times");
  step.grad_norm = 1.2345 * right;
  EXPECT_NE(found().remark.find("counted more than once, or not at all"), std::string::npos);
}

}  // namespace
}  // namespace picotron
