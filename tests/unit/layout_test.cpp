// From a config to a layout: layers over stages by either balance, chunks, shared key/value heads.
#include "train/layout.h"

#include <gtest/gtest.h>

namespace picotron {
namespace {

LlamaConfig eight_layers(int64_t vocab) {
  return {.name = "test",
          .vocab_size = vocab,
          .hidden_size = 64,
          .intermediate_size = 128,
          .num_hidden_layers = 8,
          .num_attention_heads = 8,
          .num_key_value_heads = 2,
          .head_dim = 8};
}

std::vector<int64_t> sizes_of(const Config& config, const LlamaConfig& architecture) {
  std::vector<int64_t> sizes;
  for (int stage = 0; stage < config.distributed.pp_size; ++stage) {
    for (const Range& chunk : layers_of_stage(config, architecture, stage))
      sizes.push_back(chunk.size());
  }
  return sizes;
}

TEST(LayoutOfConfigTest, LayersAreSplitEvenlyOrByWork) {
  Config config;
  config.training.seq_length = 16;
  config.distributed.pp_size = 3;
  EXPECT_EQ(sizes_of(config, eight_layers(1000)), (std::vector<int64_t>{3, 3, 2}));
  config.distributed.balance = Balance::flops;
  // A layer has 64 · (2 · 64 + 2 · 16) + 3 · 64 · 128 products and 64 · 16 of attention, 35,840 in
  // all; a head over 1,000 tokens has 64,000, nearly two layers. The embedding's few are enough to
  // make the first of two equal stages the shorter one.
  EXPECT_EQ(sizes_of(config, eight_layers(1000)), (std::vector<int64_t>{3, 3, 2}));
  EXPECT_EQ(sizes_of(config, eight_layers(2000)), (std::vector<int64_t>{3, 4, 1}));
}

TEST(LayoutOfConfigTest, ChunksOfAStageLieAWholeRoundApart) {
  Config config;
  config.distributed.pp_size = 2;
  config.distributed.pp_chunks = 2;
  config.distributed.pp_engine = PpEngine::interleaved;
  const std::vector<Range> second = layers_of_stage(config, eight_layers(100), 1);
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(second[0].begin, 2);
  EXPECT_EQ(second[1].begin, 6);
  EXPECT_EQ(second[1].end, 8);
}

TEST(LayoutOfConfigTest, RanksBeyondTheKeyValueHeadsShareThem) {
  Config config;
  for (const auto& [tp, sharing] : {std::pair(1, 1), std::pair(2, 1), std::pair(8, 4)}) {
    config.distributed.tp_size = tp;
    EXPECT_EQ(mesh_options(config, eight_layers(100)).key_value_sharing, sharing) << tp;
  }
}

}  // namespace
}  // namespace picotron
