// The optimizer against a plain loop over numbers, in every precision; what it decays, and how much
// it keeps. (Sharded over ranks: data_parallel_test.cpp.)
#include "train/optimizer.h"

#include <cmath>
#include <limits>

#include "kernels_support.h"

namespace picotron {
namespace {

// A matrix, a norm, q and k side by side, and a bias: 5·7 + 7 + (6 + 2)·7 + 8 numbers.
struct Example {
  Parameters parameters;
  explicit Example(at::ScalarType dtype) {
    const auto add = [](std::vector<int64_t> shape, Role role) {
      return Parameter{.full_shape = shape, .shard = {0, 0, shape[0]}, .role = role};
    };
    parameters.declare({add({5, 7}, Role::embedding)});
    parameters.declare({add({7}, Role::norm)});
    parameters.declare({add({6, 7}, Role::linear), add({2, 7}, Role::linear)});
    parameters.declare({add({6}, Role::bias), add({2}, Role::bias)});
    parameters.allocate(dtype);
  }
};

Training training_of(OptimizerKind kind, WeightDecayOn decay) {
  return {.optimizer = kind,
          .weight_decay = 0.3,
          .weight_decay_on = decay,
          .adam_beta1 = 0.8,
          .adam_beta2 = 0.95,
          .adam_eps = 1e-3};
}

// torch.optim.AdamW and SGD, as their documentation writes them, for one number.
struct Number {
  double w = 0, m = 0, v = 0;
  void adamw(double g, double rate, double decay, const Training& t, int64_t step) {
    w -= rate * decay * w;
    m = t.adam_beta1 * m + (1 - t.adam_beta1) * g;
    v = t.adam_beta2 * v + (1 - t.adam_beta2) * g * g;
    const double m_hat = m / (1 - std::pow(t.adam_beta1, step));
    const double v_hat = v / (1 - std::pow(t.adam_beta2, step));
    w -= rate * m_hat / (std::sqrt(v_hat) + t.adam_eps);
  }
  void sgd(double g, double rate, double decay) { w -= rate * (g + decay * w); }
};

struct Case {
  OptimizerKind kind;
  WeightDecayOn decay;
  at::ScalarType dtype;
  Body body;
};

class OptimizerTest : public ::testing::TestWithParam<Case> {};

TEST_P(OptimizerTest, FiveStepsAreThoseOfAPlainLoop) {
  const auto [kind, decay, dtype, body] = GetParam();
  Example e(dtype);
  const Group alone;
  Gradients gradients(e.parameters, alone, alone, {.bucket_numel = 60});
  const at::Tensor initial = at::zeros_like(gradients.flat());
  std::vector<std::vector<Number>> plain;
  for (const Parameter& parameter : e.parameters.list()) {
    const at::Tensor values =
        random_tensor({parameter.numel()}, gradients.flat().scalar_type(), plain.size());
    initial.narrow(0, parameter.offset, parameter.numel()).copy_(values);
    plain.emplace_back();
    for (int64_t i = 0; i < parameter.numel(); ++i)
      plain.back().push_back({.w = values[i].item<double>()});
  }
  e.parameters.flat().copy_(initial);
  const Training training = training_of(kind, decay);
  ShardedOptimizer optimizer(e.parameters, gradients, initial, training, body);

  for (int64_t step = 1; step <= 5; ++step) {
    const double rate = 0.1 / static_cast<double>(step), clip = step == 2 ? 0.25 : 1.0;
    for (size_t p = 0; p < plain.size(); ++p) {
      const Parameter& parameter = e.parameters.list()[p];
      parameter.gradient.copy_(random_tensor(parameter.local_shape(), at::kDouble,
                                             100 * static_cast<uint64_t>(step) + p));
      const at::Tensor g = parameter.gradient.reshape({-1}).to(at::kDouble);
      const bool matrix = parameter.role == Role::embedding || parameter.role == Role::linear;
      const double decays = decay == WeightDecayOn::all || matrix ? training.weight_decay : 0.0;
      for (int64_t i = 0; i < g.size(0); ++i) {
        Number& number = plain[p][static_cast<size_t>(i)];
        if (kind == OptimizerKind::adamw)
          number.adamw(g[i].item<double>() * clip, rate, decays, training, step);
        else
          number.sgd(g[i].item<double>() * clip, rate, decays);
      }
    }
    optimizer.step(step, rate, at::full({}, clip, gradients.flat().scalar_type()));
  }
  for (size_t p = 0; p < plain.size(); ++p) {
    std::vector<double> expected;
    for (const Number& number : plain[p]) expected.push_back(number.w);
    // bf16 rounds once, from fp32 master weights: half a unit in the last of 8 bits.
    const double allowed = dtype == at::kDouble ? 1e-14 : dtype == at::kFloat ? 1e-6 : 0x1p-8;
    EXPECT_LT(
        distance(e.parameters.list()[p].value.reshape({-1}), at::tensor(expected, at::kDouble)),
        allowed)
        << "parameter " << p;
  }
  // What lies between the Weights stays zero.
  for (const Weight& weight : e.parameters.weights()) {
    const int64_t end = weight.offset + weight.numel;
    if (weight.end == end) continue;
    EXPECT_EQ(e.parameters.flat().narrow(0, end, weight.end - end).abs().max().item<double>(), 0);
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::sgd})
    for (const WeightDecayOn decay : {WeightDecayOn::all, WeightDecayOn::matrices})
      for (const at::ScalarType dtype : kDtypes)
        for (const Body body : {Body::fused, Body::plain})
          all.push_back({kind, decay, dtype, body});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Kinds, OptimizerTest, ::testing::ValuesIn(cases()), [](const auto& test) {
  const Case& c = test.param;
  std::string name = c.kind == OptimizerKind::adamw ? "AdamW" : "Sgd";
  name += c.decay == WeightDecayOn::all ? "All" : "Matrices";
  name += c10::toString(c.dtype);
  return name + (c.body == Body::fused ? "Fused" : "Plain");
});

TEST(OptimizerStateTest, SmallUpdatesAreNotLostInBf16) {
  Example e(at::kBFloat16);
  const Group alone;
  Gradients gradients(e.parameters, alone, alone, {});
  const at::Tensor initial = at::ones_like(gradients.flat());
  e.parameters.flat().copy_(initial);
  ShardedOptimizer optimizer(e.parameters, gradients, initial,
                             {.optimizer = OptimizerKind::sgd, .weight_decay = 0}, Body::fused);
  gradients.flat().fill_(1);
  for (int64_t step = 1; step <= 100; ++step) optimizer.step(step, 1e-3, at::ones({}));
  // Each step is a quarter of what bf16 can tell from 1; a hundred of them are 0.1.
  EXPECT_NEAR(e.parameters.flat()[0].item<double>(), 0.9, 0.004);
}

TEST(OptimizerStateTest, AClipFactorThatIsNotFiniteChangesNothing) {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::sgd}) {
    Example e(at::kFloat), other(at::kFloat);
    const Group alone;
    Gradients gradients(e.parameters, alone, alone, {});
    Gradients same(other.parameters, alone, alone, {});
    const at::Tensor initial = at::ones_like(gradients.flat());
    e.parameters.flat().copy_(initial), other.parameters.flat().copy_(initial);
    const Training training = training_of(kind, WeightDecayOn::all);
    ShardedOptimizer optimizer(e.parameters, gradients, initial, training, Body::fused);
    ShardedOptimizer never(other.parameters, same, initial, training, Body::fused);
    gradients.flat().fill_(std::numeric_limits<double>::infinity());
    optimizer.step(1, 0.1, at::full({}, std::numeric_limits<float>::quiet_NaN()));
    EXPECT_TRUE(same_bits(e.parameters.flat(), initial));
    gradients.flat().fill_(0.5), same.flat().fill_(0.5);
    optimizer.step(1, 0.1, at::ones({})), never.step(1, 0.1, at::ones({}));
    EXPECT_TRUE(same_bits(e.parameters.flat(), other.parameters.flat())) << "nor the moments";
  }
}

TEST(OptimizerStateTest, KeepsWhatEachPrecisionNeeds) {
  const auto bytes = [](at::ScalarType dtype, OptimizerKind kind) {
    Example e(dtype);
    const Group alone;
    const Gradients gradients(e.parameters, alone, alone, {});
    const ShardedOptimizer optimizer(e.parameters, gradients, at::zeros_like(gradients.flat()),
                                     training_of(kind, WeightDecayOn::matrices), Body::fused);
    return optimizer.state_bytes() / e.parameters.flat_numel();
  };
  EXPECT_EQ(bytes(at::kBFloat16, OptimizerKind::adamw), 12);  // master, m, v
  EXPECT_EQ(bytes(at::kFloat, OptimizerKind::adamw), 8);
  EXPECT_EQ(bytes(at::kDouble, OptimizerKind::adamw), 16);
  EXPECT_EQ(bytes(at::kBFloat16, OptimizerKind::sgd), 4);
  EXPECT_EQ(bytes(at::kFloat, OptimizerKind::sgd), 0);
}

}  // namespace
}  // namespace picotron
