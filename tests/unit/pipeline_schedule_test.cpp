// Schedules as data, for 1 to 4 stages and 1 to 9 microbatches: each microbatch once forward and
// once backward, in that order, and no more of them under way than the schedule promises.
#include "parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace picotron {
namespace {

// "F0 F1 B0 …", as the picture in the header.
std::string text_of(const Schedule& schedule) {
  std::string text;
  for (const Action& action : schedule) {
    if (!text.empty()) text += ' ';
    text += (action.kind == ActionKind::forward ? 'F' : 'B') + std::to_string(action.microbatch);
  }
  return text;
}

// Checks order and completeness; returns the most microbatches that are between their forward and
// their backward at once.
int64_t most_under_way(const Schedule& schedule, int64_t microbatches) {
  std::vector<int> state(static_cast<size_t>(microbatches), 0);  // 1: forward done, 2: backward too
  int64_t under_way = 0, most = 0;
  for (const Action& action : schedule) {
    EXPECT_GE(action.microbatch, 0);
    EXPECT_LT(action.microbatch, microbatches);
    EXPECT_EQ(action.chunk, 0);
    int& of = state.at(static_cast<size_t>(action.microbatch));
    const bool forward = action.kind == ActionKind::forward;
    EXPECT_EQ(of, forward ? 0 : 1) << text_of(schedule);
    ++of;
    under_way += forward ? 1 : -1;
    most = std::max(most, under_way);
  }
  for (const int done : state) EXPECT_EQ(done, 2) << text_of(schedule);
  return most;
}

// Executes all stages at once, one action a tick, as far as their inputs are there: a schedule that
// waits for itself never ends. Returns the ticks.
int64_t ticks(const std::vector<Schedule>& stages) {
  const size_t last = stages.size() - 1;
  std::vector<std::vector<Action>> done(stages.size());
  const auto has = [&](size_t stage, ActionKind kind, int64_t microbatch) {
    return std::ranges::find(done[stage], Action{kind, microbatch}) != done[stage].end();
  };
  int64_t tick = 0;
  for (bool moved = true; moved; ++tick) {
    moved = false;
    const std::vector<std::vector<Action>> before = done;
    std::vector<bool> ready(stages.size());
    for (size_t s = 0; s < stages.size(); ++s) {
      if (before[s].size() == stages[s].size()) continue;
      const Action next = stages[s][before[s].size()];
      ready[s] = next.kind == ActionKind::forward
                     ? s == 0 || has(s - 1, ActionKind::forward, next.microbatch)
                     : s == last || has(s + 1, ActionKind::backward, next.microbatch);
    }
    for (size_t s = 0; s < stages.size(); ++s) {
      if (!ready[s]) continue;
      done[s].push_back(stages[s][before[s].size()]);
      moved = true;
    }
  }
  for (size_t s = 0; s < stages.size(); ++s) EXPECT_EQ(done[s].size(), stages[s].size());
  return tick - 1;
}

TEST(PipelineScheduleTest, EveryMicrobatchOnceForwardOnceBackwardInOrder) {
  for (int stages = 1; stages <= 4; ++stages) {
    for (int64_t microbatches = 1; microbatches <= 9; ++microbatches) {
      std::vector<Schedule> all;
      for (int stage = 0; stage < stages; ++stage) {
        SCOPED_TRACE(testing::Message() << stage << " of " << stages << ", " << microbatches);
        all.push_back(one_forward_one_backward(stage, stages, microbatches));
        const int64_t most = most_under_way(all.back(), microbatches);
        EXPECT_EQ(most, std::min<int64_t>(stages - stage, microbatches));
        EXPECT_EQ(most_under_way(all_forward_all_backward(microbatches), microbatches),
                  microbatches);
      }
      // A pipeline fills once and empties once: microbatches + stages − 1 actions each way.
      EXPECT_EQ(ticks(all), 2 * (microbatches + stages - 1));
      EXPECT_EQ(ticks({static_cast<size_t>(stages), all_forward_all_backward(microbatches)}),
                2 * (microbatches + stages - 1));
    }
  }
}

TEST(PipelineScheduleTest, OneStageIsGradientAccumulation) {
  EXPECT_EQ(text_of(one_forward_one_backward(0, 1, 3)), "F0 B0 F1 B1 F2 B2");
}

TEST(PipelineScheduleTest, ThePictureOfThreeStages) {
  EXPECT_EQ(text_of(one_forward_one_backward(0, 3, 4)), "F0 F1 F2 B0 F3 B1 B2 B3");
  EXPECT_EQ(text_of(one_forward_one_backward(1, 3, 4)), "F0 F1 B0 F2 B1 F3 B2 B3");
  EXPECT_EQ(text_of(one_forward_one_backward(2, 3, 4)), "F0 B0 F1 B1 F2 B2 F3 B3");
  EXPECT_EQ(text_of(one_forward_one_backward(0, 4, 2)), "F0 F1 B0 B1");
  EXPECT_EQ(text_of(all_forward_all_backward(3)), "F0 F1 F2 B0 B1 B2");
}

}  // namespace
}  // namespace picotron
