// The memory estimate against sums done by hand.
#include "model/memory_estimate.h"

#include <gtest/gtest.h>

namespace picotron {
namespace {

// 2 heads of 4, one key/value head: qkv 16, out 8, per token and layer.
RankShape small() {
  return {.elements = 1000,
          .owned = 250,
          .hidden = 8,
          .intermediate = 32,
          .heads = 2,
          .key_value_heads = 1,
          .head_dim = 4,
          .vocab = 100,
          .layers = {3},
          .tokens = 10};
}
// Per token and layer: 4·8 + 16 + 8 + 3·32 = 152 numbers and 2 + 2 statistics of 4 bytes.
constexpr double kLayer = 10 * (152 * 2 + 16);
constexpr double kLastNorm = 10 * (2 * 8 * 2 + 4);
// dact, dgate_up, dout, dqkv: 3·32 + 8 + 16, and five of the stream.
constexpr double kLayerBackward = 10 * 2 * (120 + 5 * 8);

TEST(MemoryEstimateTest, WeightsGradientsAndOptimizerByDtype) {
  RankShape shape = small();
  MemoryEstimate memory = estimate_memory(shape);
  EXPECT_EQ(memory.weights, 2000);
  EXPECT_EQ(memory.gradients, 4000);
  EXPECT_EQ(memory.master, 1000);
  EXPECT_EQ(memory.moments, 2000);
  EXPECT_EQ(memory.fixed(), 9000);
  shape.optimizer = OptimizerKind::sgd;
  EXPECT_EQ(estimate_memory(shape).moments, 0);
  shape.optimizer = OptimizerKind::adamw;
  shape.dtype = DType::float32;
  EXPECT_EQ(estimate_memory(shape).weights, 4000);
  EXPECT_EQ(estimate_memory(shape).master, 0);
  shape.dtype = DType::float64;
  EXPECT_EQ(estimate_memory(shape).gradients, 8000);
  EXPECT_EQ(estimate_memory(shape).moments, 4000);
}

TEST(MemoryEstimateTest, ActivationsAreWhatALayerKeeps) {
  const MemoryEstimate memory = estimate_memory(small());
  EXPECT_EQ(memory.activations, 3 * kLayer + kLayerBackward);
  EXPECT_EQ(memory.buffers, 0);
  EXPECT_EQ(memory.gaps, 0.15 * memory.activations);
  EXPECT_EQ(memory.total(), 9000 + memory.activations + memory.gaps);

  RankShape wide = small();
  wide.vocab = 1000;  // the head's logits, their gradient and dx: more than a layer's backward
  EXPECT_EQ(estimate_memory(wide).activations,
            3 * kLayer + kLastNorm + 2 * (10 * (1000 + 8) + 10 * 8));
}

TEST(MemoryEstimateTest, RecomputeKeepsLessAndBackwardNeedsItAgain) {
  RankShape shape = small();
  shape.recompute = Recompute::full;
  const double input = 10 * 8 * 2;
  EXPECT_EQ(estimate_memory(shape).activations, 3 * input + kLayerBackward + kLayer - input);
  shape.recompute = Recompute::selective;
  const double again = 10 * (2 * (8 + 32) + 4 * 2);  // out, act and lse
  EXPECT_EQ(estimate_memory(shape).activations, 3 * (kLayer - again) + kLayerBackward + again);
}

TEST(MemoryEstimateTest, ASchedulesDeepestPoint) {
  RankShape shape = small();
  shape.vocab = 0;  // not the last stage
  shape.schedule = {.engine = PpEngine::one_f_one_b, .stage = 0, .stages = 3, .microbatches = 7};
  const double message = 10 * 8 * 2;
  EXPECT_EQ(estimate_memory(shape).activations, 3 * 3 * kLayer + kLayerBackward);
  EXPECT_EQ(estimate_memory(shape).buffers, 6 * message);
  shape.schedule.stage = 1;
  EXPECT_EQ(estimate_memory(shape).activations, 2 * 3 * kLayer + kLayerBackward);
  shape.schedule.engine = PpEngine::afab;
  EXPECT_EQ(estimate_memory(shape).activations, 7 * 3 * kLayer + kLayerBackward);
  // Two chunks of one and two layers. Ahead are 2·(3 − 1 − 1) + 3·(2 − 1) = 5, so six are kept at
  // once, three in each chunk.
  shape.schedule.engine = PpEngine::interleaved;
  shape.schedule.chunks = 2;
  shape.layers = {1, 2};
  EXPECT_EQ(estimate_memory(shape).activations, (3 + 3 * 2) * kLayer + kLayerBackward);
}

TEST(MemoryEstimateTest, ZeroBubbleKeepsProductsUntilTheirWeightHalf) {
  RankShape shape = small();
  shape.vocab = 0;
  shape.schedule = {.engine = PpEngine::zb_h1, .stage = 1, .stages = 2, .microbatches = 7};
  // The last stage keeps one microbatch's products: 2·8 + 8 + 3·32 and four of the stream, a layer.
  const double queued = 3 * 10 * 2 * (2 * 8 + 8 + 3 * 32 + 4 * 8);
  EXPECT_EQ(estimate_memory(shape).activations, 3 * kLayer + kLayerBackward + queued);
}

TEST(MemoryEstimateTest, TensorParallelAndReplicasNeedBuffers) {
  RankShape shape = small();
  shape.tp = 2;
  EXPECT_EQ(estimate_memory(shape).buffers, 10 * 8 * 2);
  shape.sequence_parallel = true;  // the stream's part of a layer, and of its backward, is cut
  const double cut = 10 / 2.0 * (3 * (4 * 8 * 2 + 2 * 4) + 5 * 8 * 2);
  const double gathered = 10 * 2 * 8 * 2;
  EXPECT_EQ(estimate_memory(shape).activations, 3 * kLayer + kLayerBackward - cut + gathered);
  shape.tp = 1;
  shape.replicas = 4;
  shape.buckets = {600, 400};
  EXPECT_EQ(estimate_memory(shape).buffers, 4 * (600 + 400) * 0.75);
}

}  // namespace
}  // namespace picotron
