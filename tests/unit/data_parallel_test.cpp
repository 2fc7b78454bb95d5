// Gradients: buckets, the count of contributions, the sum over ranks, the norm and ZeRO-1, and that
// 1, 2 and 3 ranks train one model.
#include "parallel/data_parallel.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "dist_ranks.h"
#include "kernels_support.h"
#include "train/optimizer.h"

namespace picotron {
namespace {

Parameter matrix(int64_t rows, int64_t columns) {
  return {.full_shape = {rows, columns}, .shard = {0, 0, rows}};
}

Parameter vector(int64_t size) {
  return {.full_shape = {size}, .shard = {0, 0, size}, .role = Role::norm};
}

// Nine Weights of odd sizes; the last is smaller than three ranks. The first is used twice, as a
// tied embedding is.
struct Example {
  Parameters parameters;
  explicit Example(at::ScalarType dtype = at::kDouble) {
    for (int64_t i = 0; i < 4; ++i) {
      parameters.declare({matrix(7 + 4 * i, 9), matrix(3, 9)});
      parameters.declare({vector(5 + i)});
    }
    parameters.declare({vector(1)});
    parameters.weights()[0].uses = 2;
    parameters.allocate(dtype);
  }
};

constexpr GradientsOptions kSmallBuckets = {.bucket_numel = 150};

// One microbatch's backward, from the last Weight to the first: what rank r contributes.
void contribute(const Parameters& parameters, Gradients& gradients, uint64_t seed) {
  for (size_t i = parameters.weights().size(); i-- > 0;) {
    const Weight& weight = parameters.weights()[i];
    for (int use = 0; use < weight.uses; ++use) {
      const auto part = [&](at::IntArrayRef sizes, uint64_t salt) {
        return random_tensor(sizes, weight.value.scalar_type(), seed * 1000 + i * 10 + salt + use);
      };
      if (weight.value.dim() == 2) {
        gradients.accumulate(weight, part({4, weight.value.size(0)}, 0),
                             part({4, weight.value.size(1)}, 5));
      } else {
        gradients.sum(weight).add_(part(weight.value.sizes(), 0).to(weight.gradient.scalar_type()));
        gradients.contributed(weight);
      }
    }
  }
}

TEST(DataParallelTest, BucketsCoverTheFlatBufferOnceFromTheEnd) {
  for (const int64_t bucket_numel : {1, 150, 1000, 1 << 22}) {
    Example e;
    const Group alone;
    const Gradients gradients(e.parameters, alone, alone, {.bucket_numel = bucket_numel});
    int64_t begin = e.parameters.flat_numel();
    for (const Range& bucket : gradients.buckets()) {
      EXPECT_EQ(bucket.end, begin);
      begin = bucket.begin;
      const auto& weights = e.parameters.weights();
      EXPECT_TRUE(std::ranges::any_of(weights, [&](const Weight& weight) {
        return weight.offset == bucket.begin;
      })) << "whole Weights only";
      EXPECT_TRUE(bucket.size() >= bucket_numel || bucket.begin == 0);
    }
    EXPECT_EQ(begin, 0);
    const size_t buckets = gradients.buckets().size(), weights = e.parameters.weights().size();
    EXPECT_TRUE(bucket_numel != 1 || buckets == weights);
    EXPECT_TRUE(bucket_numel != 1 << 22 || buckets == 1);
  }
}

TEST(DataParallelTest, GradientsAreSumsOfProductsInTheWiderType) {
  for (const at::ScalarType dtype : kDtypes) {
    Example e(dtype);
    const Group alone;
    Gradients gradients(e.parameters, alone, alone, kSmallBuckets);
    EXPECT_EQ(gradients.flat().scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
    const Weight& weight = e.parameters.weights()[0];
    const at::Tensor dy = random_tensor({4, weight.value.size(0)}, dtype, 1);
    const at::Tensor x = random_tensor({4, 9}, dtype, 2);
    gradients.begin_step(3);
    gradients.accumulate(weight, dy, x);
    gradients.accumulate(weight, dy, x);
    const at::Tensor once = dy.to(at::kDouble).t().matmul(x.to(at::kDouble));
    const at::Tensor twice = weight.gradient.clone();
    EXPECT_LT(distance(twice, 2 * once), dtype == at::kDouble ? 1e-14 : 1e-6);
    EXPECT_EQ(e.parameters.weights()[2].gradient.abs().max().item<double>(), 0);
    const Weight& norm = e.parameters.weights()[1];
    gradients.sum(norm).fill_(7);
    gradients.begin_step(3);
    gradients.accumulate(weight, dy, x);
    // Not the same bits everywhere: a product that adds may round once where two round twice.
    EXPECT_LT(distance(2 * weight.gradient, twice), 1e-6) << "a step's first product writes";
    EXPECT_EQ(gradients.sum(norm).abs().max().item<double>(), 0) << "and other sums start from 0";
    gradients.sum(norm).fill_(7);
    EXPECT_EQ(gradients.sum(norm).min().item<double>(), 7) << "once";
  }
}

TEST(DataParallelTest, ContributionsAreCounted) {
  Example e;
  const Group alone;
  for (const GradientsOptions& options : {kSmallBuckets, GradientsOptions{}}) {
    Gradients gradients(e.parameters, alone, alone, options);
    for (int step = 0; step < 2; ++step) {
      gradients.begin_step(2);
      contribute(e.parameters, gradients, 1);
      EXPECT_THROW(gradients.finish(), BrokenInvariant) << "the second microbatch is missing";
      contribute(e.parameters, gradients, 2);
      gradients.finish();
      EXPECT_THROW(gradients.contributed(e.parameters.weights()[4]), BrokenInvariant);
      EXPECT_THROW(contribute(e.parameters, gradients, 3), BrokenInvariant) << "one too many";
    }
    // One use of one Weight less than announced.
    gradients.begin_step(1);
    const Weight& first = e.parameters.weights()[0];
    EXPECT_THROW(gradients.contributed(first), BrokenInvariant) << "nothing was written yet";
    gradients.begin_step(1);
    for (const Weight& weight : e.parameters.weights()) {
      gradients.sum(weight);
      gradients.contributed(weight);
    }
    EXPECT_THROW(gradients.finish(), BrokenInvariant) << "the first is used twice";
    gradients.contributed(first);
    gradients.finish();
  }
}

TEST(DataParallelTest, NothingIsExpectedBeforeAStepBegins) {
  Example e;
  const Group alone;
  Gradients gradients(e.parameters, alone, alone, kSmallBuckets);
  EXPECT_THROW(gradients.contributed(e.parameters.weights()[0]), BrokenInvariant);
}

TEST(DataParallelTest, QueuedProductsAreKeptUntilTaken) {
  Example direct, queued;
  const Group alone;
  Gradients expected(direct.parameters, alone, alone, kSmallBuckets);
  Gradients gradients(queued.parameters, alone, alone, kSmallBuckets);
  expected.begin_step(1);
  contribute(direct.parameters, expected, 1);
  expected.finish();

  gradients.begin_step(1);
  gradients.queue_products(true);
  contribute(queued.parameters, gradients, 1);
  gradients.queue_products(false);
  EXPECT_THROW(gradients.finish(), BrokenInvariant);
  const std::vector<Gradients::Product> products = gradients.take_queue();
  EXPECT_EQ(products.size(), 4u + 1);
  EXPECT_TRUE(gradients.take_queue().empty());
  for (const auto& [weight, dy, x] : products) gradients.accumulate(*weight, dy, x);
  gradients.finish();
  EXPECT_TRUE(same_bits(gradients.flat(), expected.flat()));
}

TEST(DataParallelTest, OwnedPartsOfAllRanksCoverEachBucketOnce) {
  Example e;
  for (const int ranks : {1, 2, 3, 7}) {
    std::vector<int> owners(static_cast<size_t>(e.parameters.flat_numel()), 0);
    for (int rank = 0; rank < ranks; ++rank) {
      Group dp_cp{.rank = rank};
      dp_cp.global_ranks.resize(static_cast<size_t>(ranks));
      const Gradients sharded(e.parameters, dp_cp, dp_cp, kSmallBuckets);
      const std::vector<Range> owned = sharded.owned();
      ASSERT_EQ(owned.size(), sharded.buckets().size());
      for (size_t i = 0; i < owned.size(); ++i) {
        const Range& bucket = sharded.buckets()[i];
        EXPECT_GE(owned[i].begin, bucket.begin);
        EXPECT_LE(owned[i].end, bucket.end);
        EXPECT_LE(owned[i].size(), bucket.size() / ranks + 1) << "shared evenly";
        for (int64_t at = owned[i].begin; at < owned[i].end; ++at) ++owners[size_t(at)];
      }
      const Gradients whole(e.parameters, dp_cp, dp_cp, {.zero_stage = 0, .bucket_numel = 150});
      for (size_t i = 0; i < owned.size(); ++i) {
        EXPECT_EQ(whole.owned()[i].begin, whole.buckets()[i].begin);
        EXPECT_EQ(whole.owned()[i].end, whole.buckets()[i].end);
      }
    }
    for (const int owner : owners) EXPECT_EQ(owner, 1);
  }
}

TEST(DataParallelTest, NormIsThePlainOneAndLeavesOutWhatAnotherRankCounts) {
  Example e;
  const Group alone;
  Gradients gradients(e.parameters, alone, alone, kSmallBuckets);
  gradients.begin_step(1);
  contribute(e.parameters, gradients, 1);
  gradients.finish();
  EXPECT_LT(distance(gradients.norm(), gradients.flat().norm()), 1e-14);
  e.parameters.list()[1].counts_in_norm = false;
  at::Tensor sum = gradients.flat().square().sum();
  sum -= e.parameters.list()[1].gradient.square().sum();
  EXPECT_LT(distance(gradients.norm(), sum.sqrt()), 1e-14);
}

TEST(DataParallelTest, ClipFactorIsThatOfTorch) {
  const auto factor = [](double norm, double max_norm) {
    return clip_factor(at::full({}, norm, at::kDouble), max_norm, at::kDouble).item<double>();
  };
  EXPECT_DOUBLE_EQ(factor(4, 1), 1 / (4 + 1e-6));
  EXPECT_EQ(factor(0.5, 1), 1);
  EXPECT_EQ(factor(4, 0), 1) << "0: off";
  for (const double max_norm : {0.0, 1.0}) {
    EXPECT_TRUE(std::isnan(factor(std::numeric_limits<double>::infinity(), max_norm)));
    EXPECT_TRUE(std::isnan(factor(std::numeric_limits<double>::quiet_NaN(), max_norm)));
  }
  EXPECT_EQ(clip_factor(at::ones({}, at::kDouble), 1, at::kFloat).scalar_type(), at::kFloat);
}

// What three steps of training leave on each of `ranks` ranks.
struct Trained {
  std::vector<at::Tensor> values;     // by rank
  std::vector<at::Tensor> gradients;  // of the last step; the rank's own parts are sums
  std::vector<std::vector<Range>> owned;
  std::vector<double> norms;
  std::vector<int64_t> state_bytes;
};

Trained train(int ranks, int zero_stage, at::ScalarType dtype, OptimizerKind kind) {
  constexpr int64_t kMicrobatches = 6;  // of the global batch
  Trained result;
  const auto n = static_cast<size_t>(ranks);
  result.values.resize(n), result.gradients.resize(n), result.owned.resize(n);
  result.norms.resize(n), result.state_bytes.resize(n);
  testing::run_ranks(ranks, [&](const Rendezvous& rendezvous) {
    const at::NoGradGuard backward_is_written_out;
    const Mesh mesh = make_mesh({.dp = ranks}, rendezvous);
    Example e(dtype);
    Gradients gradients(e.parameters, mesh.dp_cp, mesh.world,
                        {.zero_stage = zero_stage, .bucket_numel = 150});
    for (Parameter& parameter : e.parameters.list())
      parameter.gradient.copy_(
          random_tensor(parameter.local_shape(), at::kDouble, parameter.offset + 1));
    e.parameters.flat().copy_(gradients.flat());
    const Training training{.learning_rate = 0.01,
                            .optimizer = kind,
                            .weight_decay = 0.1,
                            .weight_decay_on = WeightDecayOn::matrices,
                            .adam_eps = 1e-4};
    ShardedOptimizer optimizer(e.parameters, gradients, gradients.flat(), training, Body::fused);
    const auto rank = static_cast<size_t>(mesh.my.dp);
    for (int64_t step = 1; step <= 3; ++step) {
      gradients.begin_step(kMicrobatches / ranks);
      for (int64_t i = mesh.my.dp; i < kMicrobatches; i += ranks)
        contribute(e.parameters, gradients, static_cast<uint64_t>(step * 100 + i));
      gradients.finish();
      const at::Tensor norm = gradients.norm();
      result.norms[rank] = norm.item<double>();
      optimizer.step(step, 0.01, clip_factor(norm, 1.0, gradients.flat().scalar_type()));
    }
    result.values[rank] = e.parameters.flat().clone();
    result.gradients[rank] = gradients.flat().clone();
    result.owned[rank] = gradients.owned();
    result.state_bytes[rank] = optimizer.state_bytes();
    barrier(mesh.world);  // nobody leaves while another still waits for it
  });
  return result;
}

TEST(DataParallelTest, RanksTrainTheModelThatOneRankTrains) {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::sgd}) {
    const Trained one = train(1, 1, at::kDouble, kind);
    for (const int ranks : {2, 3}) {
      for (const int zero_stage : {0, 1}) {
        SCOPED_TRACE(::testing::Message() << ranks << " ranks, zero_stage " << zero_stage);
        const Trained many = train(ranks, zero_stage, at::kDouble, kind);
        for (size_t rank = 0; rank < many.values.size(); ++rank) {
          EXPECT_LT(distance(many.values[rank], one.values[0]), kJudge);
          EXPECT_TRUE(same_bits(many.values[rank], many.values[0])) << "replicas are one";
          EXPECT_NEAR(many.norms[rank], one.norms[0], 1e-10 * one.norms[0]);
          EXPECT_EQ(many.norms[rank], many.norms[0]);
          for (const Range& part : many.owned[rank]) {
            if (part.size() == 0) continue;
            EXPECT_LT(distance(many.gradients[rank].narrow(0, part.begin, part.size()),
                               one.gradients[0].narrow(0, part.begin, part.size())),
                      kJudge)
                << "the sum over ranks";
          }
        }
      }
    }
  }
}

TEST(DataParallelTest, ZeroStagesGiveTheSameBitsAndShardTheState) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int ranks : {2, 3}) {
      SCOPED_TRACE(::testing::Message() << ranks << " ranks, " << c10::toString(dtype));
      const Trained whole = train(ranks, 0, dtype, OptimizerKind::adamw);
      const Trained sharded = train(ranks, 1, dtype, OptimizerKind::adamw);
      int64_t bytes = 0;
      for (size_t rank = 0; rank < sharded.values.size(); ++rank) {
        EXPECT_TRUE(same_bits(sharded.values[rank], whole.values[rank]));
        EXPECT_EQ(sharded.norms[rank], whole.norms[rank]);
        EXPECT_LT(sharded.state_bytes[rank], whole.state_bytes[rank] / ranks + 500);
        bytes += sharded.state_bytes[rank];
      }
      EXPECT_EQ(bytes, whole.state_bytes[0]) << "together the ranks keep one state";
      // m and v; bf16 keeps fp32 master weights beside them.
      const int64_t width = dtype == at::kDouble ? 16 : dtype == at::kFloat ? 8 : 12;
      EXPECT_EQ(whole.state_bytes[0], whole.values[0].numel() * width);
    }
  }
}

}  // namespace
}  // namespace picotron
