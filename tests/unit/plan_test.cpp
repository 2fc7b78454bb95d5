// The plan of a layout against the run itself, and the search.
#include "train/plan.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "dist_ranks.h"
#include "train/layout.h"
#include "train/plan_search.h"
#include "train/verify.h"

namespace picotron {
namespace {

using testing::run_ranks;

LlamaConfig uneven() {
  return {.name = "small",
          .vocab_size = 37,
          .hidden_size = 24,
          .intermediate_size = 29,
          .num_hidden_layers = 5,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 4,
          .tie_word_embeddings = true};
}

Config layout(const Distributed& distributed) {
  Config config;
  config.distributed = distributed;
  config.training.seq_length = 24;
  config.training.micro_batch_size = 2;
  config.training.gradient_accumulation_steps = 4;
  return config;
}

// What the model of each rank of a real mesh has allocated is what the plan says of it.
TEST(PlanTest, InventoryIsWhatARankAllocates) {
  const Config config =
      layout({.tp_size = 4, .pp_size = 2, .dp_size = 1, .sequence_parallel = true});
  const Plan plan = make_plan(config, uneven(), DType::float32);
  std::mutex one_by_one;
  std::set<int> seen;
  run_ranks(8, [&](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh(axis_sizes(config), rendezvous, mesh_options(config, uneven()));
    Llama model(uneven(), mesh,
                {.tensors = at::TensorOptions(at::kFloat),
                 .max_positions = 24,
                 .chunks = layers_of_stage(config, uneven(), mesh.my.pp),
                 .sequence_parallel = true});
    const Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world, {});
    const std::lock_guard lock(one_by_one);
    for (const RankPlan& rank : plan.ranks) {
      if (std::ranges::find(rank.global_ranks, mesh.global_rank) == rank.global_ranks.end())
        continue;
      seen.insert(mesh.global_rank);
      EXPECT_EQ(rank.inventory.elements, model.parameters().flat_numel());
      EXPECT_EQ(rank.memory.weights, static_cast<double>(model.parameters().flat().nbytes()));
      EXPECT_EQ(rank.memory.gradients, static_cast<double>(gradients.flat().nbytes()));
      ASSERT_EQ(rank.inventory.buckets.size(), gradients.buckets().size());
      for (size_t i = 0; i < gradients.buckets().size(); ++i)
        EXPECT_EQ(rank.inventory.buckets[i], gradients.buckets()[i].size());
      int64_t numbers = 0;
      for (const Parameter& parameter : model.parameters().list()) numbers += parameter.numel();
      EXPECT_EQ(rank.inventory.parameters, numbers);
    }
  });
  EXPECT_EQ(seen.size(), 8U);  // each rank in one group
}

TEST(PlanTest, RanksThatAreAlikeAreSaidOnce) {
  // Inner 29 over 4: one rank has 8, three have 7; vocabulary 37: one has 10, three have 9.
  const Plan plan =
      make_plan(layout({.tp_size = 4, .pp_size = 2, .dp_size = 2}), uneven(), DType::float32);
  ASSERT_EQ(plan.ranks.size(), 4U);
  EXPECT_EQ(plan.ranks[0].global_ranks, (std::vector<int>{0, 8}));
  EXPECT_EQ(plan.ranks[1].global_ranks, (std::vector<int>{1, 2, 3, 9, 10, 11}));
  EXPECT_EQ(plan.ranks[2].global_ranks, (std::vector<int>{4, 12}));
  EXPECT_EQ(plan.ranks[0].intermediate, 8);
  EXPECT_EQ(plan.ranks[1].intermediate, 7);
  const std::string text = describe(plan);
  for (const char* said : {"ranks 1–3, 9–11    dp 0, 1 · pp 0 · tp 1–3", "embedding, layers 0–2",
                           "layers 3–4, norm and head", "inner 7 of 29", "vocabulary 9 of 37",
                           "key/value heads 1 of 2", "2 forwards kept", "tied embedding", "bubble ",
                           "stage 1", "F0 F1"})
    EXPECT_NE(text.find(said), std::string::npos) << said << " in\n" << text;
}

TEST(PlanTest, ZeroOneOwnsAPartOfEveryBucket) {
  Config config = layout({.dp_size = 3, .zero_stage = 0});
  const double all = most_memory(config, uneven(), DType::float32).moments;
  config.distributed.zero_stage = 1;
  const double part = most_memory(config, uneven(), DType::float32).moments;
  EXPECT_NEAR(part, all / 3, 8);
  EXPECT_GE(part, all / 3);
}

TEST(PlanTest, RecomputeMakesBackwardLonger) {
  Config config = layout({.pp_size = 2});
  EXPECT_EQ(action_costs(config, uneven()).backward_input, 1);
  config.training.recompute = Recompute::selective;
  const double selective = action_costs(config, uneven()).backward_input;
  config.training.recompute = Recompute::full;
  const double full = action_costs(config, uneven()).backward_input;
  EXPECT_GT(selective, 1);
  EXPECT_GT(full, selective);
  EXPECT_LT(full, 2);
}

TEST(PlanSearchTest, RanksValidLayoutsByTime) {
  Config config = layout({});
  config.training.gradient_accumulation_steps = 8;
  const SearchOptions options{.world = 8, .flops = 1e9, .link = 1e9};
  const std::vector<Candidate> found = search_layouts(config, uneven(), DType::float32, options);
  ASSERT_GT(found.size(), 5U);
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(world_size(found[i].config), 8);
    EXPECT_EQ(global_batch_size(found[i].config), 16);
    EXPECT_NO_THROW(check(found[i].config, layout_sizes(uneven())));
    EXPECT_NE(found[i].config.distributed.tp_size, 8);  // does not divide 4 heads
    EXPECT_NE(found[i].config.distributed.pp_size, 8);  // of 5 layers
    EXPECT_GE(found[i].seconds(), found[i == 0 ? 0 : i - 1].seconds());
  }
  // What fits less memory is still there, and nothing that needs more.
  SearchOptions tight = options;
  tight.most_memory = found.front().memory - 1;
  for (const Candidate& candidate : search_layouts(config, uneven(), DType::float32, tight))
    EXPECT_LE(candidate.memory, tight.most_memory);
  // With links that cost nothing, only the wait for other stages and the recomputing are left.
  SearchOptions free = options;
  free.link = 1e30;
  EXPECT_EQ(search_layouts(config, uneven(), DType::float32, free).front().bubble, 0);
  const std::string text = describe(found);
  EXPECT_LE(std::ranges::count(text, '\n'), 21);
}

}  // namespace
}  // namespace picotron
