// Cross-entropy: loss and gradient against ATen's own over the whole vocabulary, whatever the
// split, and for logits far beyond what exp can hold.
#include "kernels/cross_entropy.h"

#include "kernels/vjp.h"
#include "kernels_support.h"

namespace picotron {
namespace {

struct Result {
  at::Tensor loss, gradient;
};

// What `columns.size()` ranks compute together: loss [t] and d(sum of loss)·scale [t, vocabulary].
Result over_ranks(const at::Tensor& logits, const at::Tensor& targets,
                  const std::vector<int64_t>& columns, double scale, Body body) {
  std::vector<at::Tensor> shards, statistics;
  int64_t begin = 0;
  for (const int64_t n : columns) {
    shards.push_back(logits.narrow(1, begin, n).contiguous());
    if (shards.back().is_alias_of(logits)) shards.back() = shards.back().clone();
    statistics.push_back(cross_entropy_statistics(shards.back(), targets, begin, body));
    begin += n;
  }
  const at::Tensor merged = merge_statistics(at::stack(statistics));
  begin = 0;
  for (const at::Tensor& shard : shards) {
    cross_entropy_gradient_(shard, targets, begin, merged.select(1, 0), scale, body);
    begin += shard.size(1);
  }
  return {merged.select(1, 0) - merged.select(1, 1), at::cat(shards, 1)};
}

const std::vector<std::vector<int64_t>> kSplits = {{5003}, {2500, 2503}, {1, 5000, 2}};

at::Tensor some_targets() {
  return at::tensor({0, 5002, 1, 2499, 2500, 77, 77}, at::kLong);
}

TEST(CrossEntropy, LossAndGradientAreTheDefinitions) {
  const at::Tensor logits = random_tensor({7, 5003}, at::kDouble, 1) * 4;
  const at::Tensor targets = some_targets();
  const auto judge = vjp(
      [&](const std::vector<at::Tensor>& in) {
        return at::cross_entropy_loss(in[0], targets, {}, at::Reduction::None);
      },
      {logits});
  const at::Tensor gradient = judge.pullback(at::full({7}, 0.125, at::kDouble))[0];
  for (const auto& split : kSplits) {
    for (const Body body : {Body::fused, Body::plain}) {
      const Result result = over_ranks(logits, targets, split, 0.125, body);
      EXPECT_LT(distance(result.loss, judge.output), kJudge);
      EXPECT_LT(distance(result.gradient, gradient), kJudge);
    }
  }
}

TEST(CrossEntropy, FusedIsPlain) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t columns : {1, 17, 2048, 5003}) {
      const at::Tensor logits = random_tensor({7, columns}, dtype, 1) * 4;
      const at::Tensor targets =
          some_targets() - 3;  // some before this rank's columns, some behind
      const at::Tensor statistics = cross_entropy_statistics(logits, targets, 5);
      EXPECT_EQ(statistics.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
      const at::Tensor plain = cross_entropy_statistics(logits, targets, 5, Body::plain);
      EXPECT_TRUE(same_bits(statistics.select(1, 0), plain.select(1, 0)));
      EXPECT_LT(distance(statistics.select(1, 1), plain.select(1, 1)), 1e-6);
      EXPECT_TRUE(same_bits(statistics.select(1, 2), plain.select(1, 2)));
      const at::Tensor lse = plain.select(1, 0) + plain.select(1, 1).log();
      const at::Tensor fused_gradient = logits.clone(), plain_gradient = logits.clone();
      cross_entropy_gradient_(fused_gradient, targets, 5, lse, 3);
      cross_entropy_gradient_(plain_gradient, targets, 5, lse, 3, Body::plain);
      EXPECT_LT(distance(fused_gradient, plain_gradient), tolerance(dtype));
    }
  }
}

TEST(CrossEntropy, ExtremeLogitsGiveTheLimit) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const auto& split : std::vector<std::vector<int64_t>>{{100}, {99, 1}, {33, 34, 33}}) {
      at::Tensor logits = at::full({4, 100}, -1e4, dtype);
      logits[0][99] = 1e4;                      // certain, and right
      logits[1][99] = 1e4;                      // certain, and wrong
      logits[2] = at::full({100}, 1e4, dtype);  // all equal
      logits[3] = at::full({100}, -1e4, dtype);
      const at::Tensor targets = at::tensor({99, 0, 50, 99}, at::kLong);
      const double gap = 2 * at::scalar_tensor(1e4, dtype).item<double>();
      const Result result = over_ranks(logits, targets, split, 1, Body::fused);
      const at::Tensor loss = result.loss.to(at::kDouble);
      EXPECT_EQ(loss[0].item<double>(), 0);
      EXPECT_EQ(loss[1].item<double>(), gap);
      EXPECT_NEAR(loss[2].item<double>(), std::log(100), 1e-3);
      EXPECT_NEAR(loss[3].item<double>(), std::log(100), 1e-3);
      const at::Tensor gradient = result.gradient.to(at::kDouble);
      EXPECT_EQ(gradient[0].abs().max().item<double>(), 0);
      EXPECT_EQ(gradient[1][0].item<double>(), -1);
      EXPECT_EQ(gradient[1][99].item<double>(), 1);
      EXPECT_EQ(gradient[1].abs().sum().item<double>(), 2);
      EXPECT_NEAR(gradient[2][50].item<double>(), -0.99, 4e-3);
      EXPECT_NEAR(gradient[3][98].item<double>(), 0.01, 1e-4);
    }
  }
}

TEST(CrossEntropy, NotANumberIsSeenInTheLoss) {
  const at::Tensor logits = random_tensor({1, 4000}, at::kFloat, 1);
  logits[0][3210] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor targets = at::tensor({3}, at::kLong);
  const at::Tensor statistics = cross_entropy_statistics(logits, targets, 0);
  EXPECT_TRUE(at::isnan(merge_statistics(statistics.unsqueeze(0))[0][0]).item<bool>());
}

}  // namespace
}  // namespace picotron
