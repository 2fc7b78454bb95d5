// Parameters: how they lie in the flat buffer, and that every tensor is a view of it.
#include "parallel/parameter.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace picotron {
namespace {

Parameter matrix(const std::string& name, int64_t rows, int64_t columns) {
  return {.name = name, .full_shape = {rows, columns}, .shard = {0, 0, rows}};
}

// embed [7, 9]; q, k, v of 6, 2, 2 rows side by side; a norm of 9; rows 3..5 of a sharded [8, 9];
// columns 4..9 of an [5, 9].
struct Example {
  Parameters parameters;
  Weight* embed = parameters.declare({matrix("embed", 7, 9)});
  Weight* qkv = parameters.declare({matrix("q", 6, 9), matrix("k", 2, 9), matrix("v", 2, 9)});
  Weight* norm = parameters.declare({{.name = "norm", .full_shape = {9}, .shard = {0, 0, 9}}});
  Weight* rows = parameters.declare({{.name = "rows", .full_shape = {8, 9}, .shard = {0, 3, 5}}});
  Weight* columns =
      parameters.declare({{.name = "columns", .full_shape = {5, 9}, .shard = {1, 4, 9}}});
};

TEST(ParameterTest, ShapesAreThoseOfTheShard) {
  const Example e;
  const std::vector<Parameter>& list = e.parameters.list();
  EXPECT_EQ(list[0].local_shape(), (std::vector<int64_t>{7, 9}));
  EXPECT_EQ(list[5].local_shape(), (std::vector<int64_t>{2, 9}));
  EXPECT_EQ(list[5].numel(), 18);
  EXPECT_EQ(list[6].local_shape(), (std::vector<int64_t>{5, 5}));
  EXPECT_EQ(list[6].numel(), 25);
}

TEST(ParameterTest, LieInForwardOrderOnCacheLinesWithoutOverlap) {
  Example e;
  e.parameters.allocate(at::kDouble);
  int64_t end = 0;
  size_t next = 0;
  for (const Weight& weight : e.parameters.weights()) {
    EXPECT_EQ(weight.offset, end);
    EXPECT_EQ(weight.offset % 64, 0);
    EXPECT_EQ(weight.first, next);
    int64_t inside = weight.offset;
    for (size_t i = 0; i < weight.count; ++i) {
      const Parameter& parameter = e.parameters.list()[weight.first + i];
      EXPECT_EQ(parameter.offset, inside) << parameter.name << ": neighbours touch";
      inside += parameter.numel();
    }
    EXPECT_EQ(inside, weight.offset + weight.numel);
    EXPECT_GE(weight.end, inside);
    EXPECT_LT(weight.end - inside, 64);
    end = weight.end;
    next += weight.count;
  }
  EXPECT_EQ(end, e.parameters.flat_numel());
  EXPECT_EQ(e.parameters.flat().numel(), e.parameters.flat_numel());
  EXPECT_EQ(e.parameters.flat().abs().max().item<double>(), 0);
  EXPECT_EQ(next, e.parameters.list().size());
}

TEST(ParameterTest, ValuesAndGradientsAreViewsOfTheFlatBuffers) {
  Example e;
  e.parameters.allocate(at::kFloat);
  const at::Tensor gradients = at::zeros({e.parameters.flat_numel()}, at::kDouble);
  e.parameters.set_gradients(gradients);
  e.parameters.flat().copy_(at::arange(e.parameters.flat_numel()));
  gradients.copy_(at::arange(e.parameters.flat_numel()) * 2);
  EXPECT_EQ(e.qkv->value.sizes(), (std::vector<int64_t>{10, 9}));
  EXPECT_EQ(e.norm->value.sizes(), (std::vector<int64_t>{9}));
  EXPECT_EQ(e.columns->value.sizes(), (std::vector<int64_t>{5, 5}));
  for (const Weight& weight : e.parameters.weights()) {
    EXPECT_EQ(weight.value.reshape({-1})[0].item<double>(), static_cast<double>(weight.offset));
    EXPECT_TRUE(at::equal(weight.gradient, 2 * weight.value.to(at::kDouble)));
    EXPECT_EQ(weight.gradient.scalar_type(), at::kDouble);
  }
  for (const Parameter& parameter : e.parameters.list()) {
    EXPECT_EQ(parameter.value.sizes(), parameter.local_shape());
    EXPECT_EQ(parameter.value.reshape({-1})[0].item<double>(),
              static_cast<double>(parameter.offset));
    EXPECT_TRUE(at::equal(parameter.gradient, 2 * parameter.value.to(at::kDouble)));
  }
  // k lies in rows 6 and 7 of the fused product's weight.
  e.parameters.list()[2].value.fill_(-1);
  EXPECT_TRUE(at::equal(e.qkv->value.narrow(0, 6, 2), at::full({2, 9}, -1.0F)));
  EXPECT_GT(e.qkv->value.narrow(0, 0, 6).min().item<float>(), -1);
  EXPECT_GT(e.qkv->value.narrow(0, 8, 2).min().item<float>(), -1);
}

TEST(ParameterTest, PointersStayValidWhileMoreAreDeclared) {
  Parameters parameters;
  std::vector<Weight*> weights;
  for (int i = 0; i < 1000; ++i) weights.push_back(parameters.declare({matrix("w", 2, 3)}));
  parameters.allocate(at::kFloat);
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_EQ(weights[i], &parameters.weights()[i]);
    EXPECT_EQ(weights[i]->index, i);
    EXPECT_TRUE(weights[i]->value.defined());
  }
}

TEST(ParameterTest, RefusesWhatDoesNotFit) {
  Parameters parameters;
  EXPECT_THROW(parameters.declare({matrix("a", 2, 3), {.full_shape = {3}, .shard = {0, 0, 3}}}),
               BrokenInvariant);
  Example e;
  e.parameters.allocate(at::kFloat);
  EXPECT_THROW(e.parameters.declare({matrix("late", 2, 3)}), BrokenInvariant);
  EXPECT_THROW(e.parameters.set_gradients(at::zeros({e.parameters.flat_numel() - 1})),
               BrokenInvariant);
}

}  // namespace
}  // namespace picotron
