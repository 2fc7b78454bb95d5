// The memory estimate against sums done by hand.
#include "model/memory_estimate.h"

#include <gtest/gtest.h>

namespace picotron {
namespace {

// 2 heads of 4, one key/value head: qkv 16, out 8, per token and layer.
RunShape small() {
  return {.parameters = 1000,
          .hidden = 8,
          .intermediate = 32,
          .layers = 3,
          .heads = 2,
          .key_value_heads = 1,
          .head_dim = 4,
          .vocab = 100,
          .tokens = 10,
          .replicas = 4,
          .zero_stage = 1,
          .dtype = DType::bfloat16};
}

TEST(MemoryEstimateTest, WeightsGradientsAndOptimizerByDtype) {
  RunShape shape = small();
  MemoryEstimate memory = estimate_memory(shape);
  EXPECT_EQ(memory.weights, 2000);
  EXPECT_EQ(memory.gradients, 4000);
  EXPECT_EQ(memory.optimizer, 3000);  // 12 bytes over 4 replicas
  shape.zero_stage = 0;
  EXPECT_EQ(estimate_memory(shape).optimizer, 12000);
  shape.dtype = DType::float32;
  EXPECT_EQ(estimate_memory(shape).weights, 4000);
  EXPECT_EQ(estimate_memory(shape).optimizer, 8000);
  shape.dtype = DType::float64;
  EXPECT_EQ(estimate_memory(shape).gradients, 8000);
}

TEST(MemoryEstimateTest, ActivationsAreWhatALayerKeeps) {
  // Per token and layer: 4·8 + 16 + 8 + 3·32 = 152 numbers and 2 + 2 statistics of 4 bytes.
  const double layers = 10 * 3 * (152 * 2 + 16);
  const double last_norm = 10 * 2 * 8 * 2;
  const double layer_backward =
      10 * (2 * 8 + 3 * 32) * 2;  // more than the head: 10 · (100 + 8) · 2
  const MemoryEstimate memory = estimate_memory(small());
  EXPECT_EQ(memory.activations, layers + last_norm + layer_backward);
  EXPECT_EQ(memory.total(), 2000 + 4000 + 3000 + memory.activations);

  RunShape wide = small();
  wide.vocab = 1000;
  EXPECT_EQ(estimate_memory(wide).activations, layers + last_norm + 10 * (1000 + 8) * 2);
}

}  // namespace
}  // namespace picotron
