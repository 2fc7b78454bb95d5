// The measured step is a whole training step, and the product floor counts each of its products.
#include "train/step_bench.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/matmul_floor.h"

namespace picotron {
namespace {

StepBenchOptions tiny() {
  LlamaConfig config;
  config.vocab_size = 509, config.hidden_size = 64, config.intermediate_size = 96;
  config.num_hidden_layers = 3, config.num_attention_heads = 4, config.num_key_value_heads = 2;
  config.head_dim = 16;
  return {.architecture = config, .dtype = at::kFloat, .rows = 2, .columns = 8};
}

TEST(StepBench, LeavesEveryProductOfAStepInTheRecord) {
  StepBench bench(tiny());
  EXPECT_GT(bench.step(), 0);
  bench.step();
  const std::vector<ProductTime> products = measure_products(bench.entries(), at::kFloat);
  int64_t count = 0;
  double flops = 0;
  for (const ProductTime& p : products) {
    EXPECT_GT(p.seconds, 0) << p.what;
    count += p.count;
    flops += static_cast<double>(p.count) * p.flops();
  }
  // Four linear layers in each of 3, and the head; three products each. Weights: 3 x (qkv 64 x 128,
  // o 64 x 64, gate and up 64 x 192, down 96 x 64), head 509 x 64; 6 operations a weight and token.
  EXPECT_EQ(count, 3 * (3 * 4 + 1));
  EXPECT_EQ(flops, 6.0 * 16 * (3 * (64 * 128 + 64 * 64 + 64 * 192 + 96 * 64) + 509 * 64));
  EXPECT_GT(total_seconds(products), 0);
}

TEST(StepBench, AnswersRequests) {
  std::istringstream in("steps 2\nfloor\nsteps 1\n");
  std::ostringstream out;
  serve_step_bench(tiny(), in, out);
  std::istringstream lines(out.str());
  std::vector<nlohmann::json> answers;
  for (std::string line; std::getline(lines, line);) answers.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(answers.size(), 4U);
  EXPECT_EQ(answers[1]["seconds"].size(), 2U);
  EXPECT_GT(answers[1]["memory_bytes"], 0);
  EXPECT_LT(answers[1]["newest"]["products"], answers[1]["seconds"][1]);
  EXPECT_GT(answers[2]["seconds"], 0);
  EXPECT_EQ(answers[3]["seconds"].size(), 1U);
}

}  // namespace
}  // namespace picotron
