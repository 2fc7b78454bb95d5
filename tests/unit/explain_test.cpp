// The story of one step: what each rank of dp2·tp2·pp2 does, in the right order, as often as the
// layout says, and with two ends to every message; and what other layouts add to it.
#include "train/explain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace picotron {
namespace {

using record::Axis;
using record::Kind;

constexpr int64_t kMicrobatches = 2;
// Of two stages the first has two, the second one.
constexpr int64_t kLayers = 3;

Config config_of(const Distributed& distributed) {
  Config config;
  config.distributed = distributed;
  config.training.gradient_accumulation_steps = kMicrobatches;
  config.training.micro_batch_size = 1;
  return config;
}

std::vector<RankStory> story_of(const Config& config, int64_t step = 1) {
  const LlamaConfig architecture{.name = "small",
                                 .vocab_size = 22,
                                 .hidden_size = 24,
                                 .intermediate_size = 12,
                                 .num_hidden_layers = kLayers,
                                 .num_attention_heads = 4,
                                 .num_key_value_heads = 2,
                                 .head_dim = 4};
  return explain_step(shrink(config, architecture, DType::float64, OptimizerKind::adamw), step);
}

using Condition = std::function<bool(const Event&)>;

int64_t count(const RankStory& story, const Condition& condition) {
  return std::count_if(story.events.begin(), story.events.end(), condition);
}

// Places in the story of what fulfils a condition.
std::vector<int64_t> places(const RankStory& story, const Condition& condition) {
  std::vector<int64_t> result;
  for (size_t i = 0; i < story.events.size(); ++i) {
    if (condition(story.events[i])) result.push_back(static_cast<int64_t>(i));
  }
  return result;
}

Condition is(Kind kind, Axis axis) {
  return [=](const Event& e) { return e.entry.kind == kind && e.entry.axis == axis; };
}

std::string actions(const RankStory& story) {
  std::string text;
  for (const Event& e : story.events) {
    if (e.entry.kind == Kind::action) text += e.action + std::to_string(e.microbatch) + " ";
  }
  return text;
}

class ExplainTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    stories_ = new std::vector<RankStory>(
        story_of(config_of({.tp_size = 2, .pp_size = 2, .dp_size = 2, .use_cpu = true})));
  }
  static void TearDownTestSuite() { delete stories_; }
  static const std::vector<RankStory>& stories() { return *stories_; }
  static std::vector<RankStory>* stories_;
};
std::vector<RankStory>* ExplainTest::stories_ = nullptr;

TEST_F(ExplainTest, EveryRankKnowsItsPlace) {
  ASSERT_EQ(stories().size(), 8u);
  for (int rank = 0; rank < 8; ++rank)
    EXPECT_EQ(stories()[static_cast<size_t>(rank)].global_rank, rank);
  EXPECT_EQ(stories()[0].place, "dp 0, pp 0, tp 0");
  EXPECT_EQ(stories()[7].place, "dp 1, pp 1, tp 1");
}

TEST_F(ExplainTest, ActionsAreThoseOfTheSchedule) {
  EXPECT_EQ(actions(stories()[0]),
            "forward0 send_activation0 receive_gradient0 forward1 send_activation1 "
            "receive_gradient1 backward0 backward1 ");
  for (const RankStory& story : stories()) {
    EXPECT_EQ(count(story, [](const Event& e) { return e.entry.kind == Kind::action; }), 8);
  }
}

TEST_F(ExplainTest, TwoCollectivesOfTpALayerForwardAndTwoBackward) {
  for (const RankStory& story : stories()) {
    std::map<std::tuple<std::string, int64_t, std::string>, int64_t> seen;
    for (const Event& e : story.events) {
      if (!e.part.starts_with("layer")) continue;
      if (is(Kind::collective, Axis::tp)(e)) ++seen[{e.action, e.microbatch, e.part}];
    }
    const int64_t layers = story.place.find("pp 0") != std::string::npos ? 2 : 1;
    EXPECT_EQ(static_cast<int64_t>(seen.size()), 2 * kMicrobatches * layers);
    for (const auto& [where, number] : seen) EXPECT_EQ(number, 2) << std::get<2>(where);
  }
}

TEST_F(ExplainTest, ALayerIsToldInTheOrderOfItsProducts) {
  const auto told = [&](const char* action, const char* part) {
    std::string text;
    for (const Event& e : stories()[0].events) {
      if (e.action != action || e.part != part || e.microbatch != 0) continue;
      if (e.entry.kind == Kind::product || e.entry.kind == Kind::attention)
        text += e.entry.what + std::string(" ") + e.weight + "\n";
    }
    return text;
  };
  EXPECT_EQ(told("forward", "layer 0"),
            "linear_forward q_proj, k_proj, v_proj\nattention \nlinear_forward o_proj\n"
            "linear_forward gate_proj, up_proj\nlinear_forward down_proj\n");
  EXPECT_EQ(told("backward", "layer 1"),
            "linear_input_gradient down_proj\nlinear_weight_gradient down_proj\n"
            "linear_input_gradient gate_proj, up_proj\nlinear_weight_gradient gate_proj, up_proj\n"
            "linear_input_gradient o_proj\nlinear_weight_gradient o_proj\nattention_backward \n"
            "linear_input_gradient q_proj, k_proj, v_proj\n"
            "linear_weight_gradient q_proj, k_proj, v_proj\n");
}

TEST_F(ExplainTest, TheSumOfDxIsUnderWayBeforeTheWeightGradient) {
  for (const char* weight : {"q_proj, k_proj, v_proj", "gate_proj, up_proj"}) {
    std::string order;
    for (const Event& e : stories()[0].events) {
      if (e.action == "backward" && e.weight == weight && e.part == "layer 0" && e.microbatch == 0)
        order += std::string(e.entry.what) + " ";
    }
    EXPECT_EQ(order, "linear_input_gradient all_reduce linear_weight_gradient ");
  }
}

TEST_F(ExplainTest, EveryMessageHasTwoEnds) {
  // The n-th send from a to b is the n-th that b receives from a, and as large.
  std::map<std::pair<int, int>, std::vector<const Event*>> sent, received;
  for (const RankStory& story : stories()) {
    for (const Event& e : story.events) {
      if (!is(Kind::send_receive, Axis::pp)(e)) continue;
      const bool sends = std::string_view(e.entry.what) == "send";
      (sends ? sent[{story.global_rank, e.entry.peer}]
             : received[{e.entry.peer, story.global_rank}])
          .push_back(&e);
    }
  }
  ASSERT_EQ(sent.size(), 8u);  // four pairs of ranks, both ways
  EXPECT_EQ(received.size(), sent.size());
  for (const auto& [ends, out] : sent) {
    const std::vector<const Event*>& in = received.at(ends);
    ASSERT_EQ(out.size(), static_cast<size_t>(kMicrobatches));
    ASSERT_EQ(in.size(), out.size());
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i]->entry.shape, in[i]->entry.shape);
      EXPECT_EQ(out[i]->entry.bytes, out[i]->entry.shape[0] * out[i]->entry.shape[1] * 8);
      EXPECT_EQ(out[i]->microbatch, in[i]->microbatch);
      EXPECT_EQ(out[i]->action.substr(4), in[i]->action.substr(7));  // "_activation"
    }
  }
}

TEST_F(ExplainTest, ReductionsBeginInTheLastBackwardAndTheOptimizerComesAfter) {
  for (const RankStory& story : stories()) {
    const auto reductions = places(story, [](const Event& e) {
      return is(Kind::collective, Axis::dp_cp)(e) &&
             std::string_view(e.entry.what) == "reduce_scatter";
    });
    ASSERT_FALSE(reductions.empty());
    for (const int64_t i : reductions) {
      const Event& e = story.events[static_cast<size_t>(i)];
      EXPECT_EQ(e.action, "backward");
      EXPECT_EQ(e.microbatch, kMicrobatches - 1);
      EXPECT_NE(e.weight, "") << "the one that filled the bucket";
    }
    const auto updates =
        places(story, [](const Event& e) { return e.entry.kind == Kind::optimizer; });
    const auto gathers = places(story, [](const Event& e) {
      return e.entry.axis == Axis::dp_cp && std::string_view(e.entry.what) == "all_gather";
    });
    const auto world = places(story, is(Kind::collective, Axis::world));
    ASSERT_FALSE(updates.empty());
    ASSERT_EQ(gathers.size(), reductions.size());
    ASSERT_EQ(world.size(), 2u);
    EXPECT_LT(reductions.back(), world[0]) << "the norm";
    EXPECT_LT(world[0], updates.front());
    EXPECT_LT(updates.back(), gathers.front());
    EXPECT_LT(gathers.back(), world[1]) << "the loss";
    EXPECT_EQ(story.events[static_cast<size_t>(world[0])].phase, Phase::clip);
    EXPECT_EQ(story.events[static_cast<size_t>(world[1])].phase, Phase::reading);
  }
}

TEST_F(ExplainTest, LinesNameShapesWithTheirShardingGroupsAndPlaces) {
  std::string text;
  for (const std::string& line : tell(stories()[0])) text += line + "\n";
  for (const char* told :
       {"forward · microbatch 0, chunk 0", "  layer 1\n", "send activation · microbatch 1",
        "x [12, 24] · W[16 of 32, 24]ᵀ → y [12, 16 of 32]",
        "x [12, 8 of 16] · W[24, 8 of 16]ᵀ → y [12, 24] partial(tp)",
        "dy [12, 16 of 32] · W[16 of 32, 24] → dx [12, 24] partial(tp)",
        "dy [12, 16 of 32]ᵀ · x [12, 24] → dW [16 of 32, 24] partial(dp_cp)",
        "[12, 24] partial(tp) → sum   over tp {0, 1}, 2304 bytes sent",
        "q [1 rows, 2 of 4 heads, 12 tokens, 4]",
        "[12, 24] → rank 2 (dp 0, pp 1, tp 0), 2304 bytes sent",
        "[12, 24] ← rank 2 (dp 0, pp 1, tp 0)", "over dp_cp {0, 4}", "adamw",
        "src/parallel/tensor_parallel.cpp:", "src/parallel/pipeline_parallel.cpp:",
        "src/train/optimizer.cpp:"}) {
    EXPECT_NE(text.find(told), std::string::npos) << told << "\nis not in\n" << text;
  }
}

TEST(ExplainLayoutsTest, ALaterStepIsToldAsTheFirst) {
  const Config config = config_of({.use_cpu = true});
  const std::vector<std::string> first = tell(story_of(config, 1)[0]);
  EXPECT_EQ(tell(story_of(config, 3)[0]), first);
  EXPECT_EQ(first.back(), "Nothing was sent.");
}

TEST(ExplainLayoutsTest, AttentionBelongsToItsLayerWhereItIsComputedAgain) {
  Config config = config_of({.cp_size = 2, .use_cpu = true});
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    config.training.recompute = recompute;
    const std::vector<RankStory> stories = story_of(config);
    for (int layer = 0; layer < 2; ++layer) {
      const std::string part = "layer " + std::to_string(layer);
      const auto in_backward = [&](const char* what, bool messages) {
        return count(stories[0], [&](const Event& e) {
          return e.action == "backward" && e.part == part &&
                 std::string_view(e.entry.what) == what && (!messages || e.entry.axis == Axis::cp);
        });
      };
      EXPECT_EQ(in_backward("attention", false), 2 * kMicrobatches) << "own keys, and the other's";
      EXPECT_EQ(in_backward("attention_backward", false), 2 * kMicrobatches);
      EXPECT_EQ(in_backward("send", true), 3 * kMicrobatches) << "again, block, sums";
    }
  }
}

TEST(ExplainLayoutsTest, WeightGradientsOfAZeroBubbleScheduleNameTheirWeights) {
  const std::vector<RankStory> stories =
      story_of(config_of({.pp_size = 2, .pp_engine = PpEngine::zb_h1, .use_cpu = true}));
  EXPECT_EQ(count(stories[0],
                  [](const Event& e) {
                    return e.action == "backward_weight" && e.weight == "down_proj" &&
                           std::string_view(e.entry.what) == "linear_weight_gradient";
                  }),
            2 * kMicrobatches)
      << "of two layers";
}

TEST(ExplainLayoutsTest, SequenceParallelGathersAndScattersAndSharedHeadsAreSummed) {
  const std::vector<RankStory> stories =
      story_of(config_of({.tp_size = 4, .use_cpu = true, .sequence_parallel = true}));
  const auto in_layer = [&](const char* action, const char* what, const char* file) {
    return count(stories[0], [&](const Event& e) {
      return e.action == action && e.part == "layer 0" && std::string_view(e.entry.what) == what &&
             std::string_view(e.entry.file).find(file) != std::string_view::npos;
    });
  };
  const char* layers = "tensor_parallel.cpp";
  EXPECT_EQ(in_layer("forward", "all_gather", layers), 2 * kMicrobatches);
  EXPECT_EQ(in_layer("forward", "reduce_scatter", layers), 2 * kMicrobatches);
  EXPECT_EQ(in_layer("backward", "all_gather", layers), 4 * kMicrobatches) << "dy, and x once more";
  EXPECT_EQ(in_layer("backward", "reduce_scatter", layers), 2 * kMicrobatches);
  EXPECT_EQ(in_layer("backward", "all_reduce", "data_parallel.cpp"), 4)
      << "two norms, and the key and value head that two ranks hold";
  std::string text;
  for (const std::string& line : tell(stories[3])) text += line + "\n";
  EXPECT_NE(text.find("over tp {2, 3}"), std::string::npos) << text;
}

}  // namespace
}  // namespace picotron
