// The checker: lists broken on purpose, each with the flaw it must find and the action it must
// name, and the timeline of lists that are whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>

#include "parallel/schedule_check.h"

namespace picotron {
namespace {

using Kind = ActionKind;

constexpr ScheduleOptions kTwo{PpEngine::one_f_one_b, 0, 2, 1, 4};
constexpr ScheduleOptions kThree{PpEngine::one_f_one_b, 0, 3, 1, 4};

std::optional<BrokenSchedule> flaw_of(const std::vector<Schedule>& lists,
                                      const ScheduleOptions& options, Delivery delivery) {
  try {
    check_schedules(lists, options, delivery);
  } catch (const BrokenSchedule& broken) {
    return broken;
  }
  return std::nullopt;
}

// Found under both rules.
void expect_flaw(const std::vector<Schedule>& lists, const ScheduleOptions& options, Flaw flaw,
                 int stage, const Action& action) {
  for (const Delivery delivery : {Delivery::buffered, Delivery::rendezvous}) {
    const auto found = flaw_of(lists, options, delivery);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->flaw, flaw) << found->what();
    EXPECT_EQ(found->stage, stage) << found->what();
    EXPECT_EQ(found->action, action) << found->what();
    EXPECT_NE(std::string(found->what()).find("stage " + std::to_string(stage)), std::string::npos)
        << found->what();
  }
}

Schedule::iterator find(Schedule& list, const Action& action) {
  const auto found = std::ranges::find(list, action);
  EXPECT_NE(found, list.end());
  return found;
}

TEST(ScheduleCheckTest, WholeListsHaveNoFlaw) {
  for (const Delivery delivery : {Delivery::buffered, Delivery::rendezvous})
    EXPECT_EQ(flaw_of(all_stages(kThree), kThree, delivery), std::nullopt);
}

TEST(ScheduleCheckTest, AnActionThatIsMissing) {
  for (const Kind kind : {Kind::backward, Kind::send_activation, Kind::send_gradient}) {
    auto lists = all_stages(kThree);
    lists[1].erase(find(lists[1], {kind, 2}));
    if (kind == Kind::backward) lists[1].erase(find(lists[1], {Kind::send_gradient, 2}));
    expect_flaw(lists, kThree, Flaw::missing, 1, {kind, 2});
  }
  auto lists = all_stages(kThree);
  lists[0].erase(find(lists[0], {Kind::receive_gradient, 1}));
  expect_flaw(lists, kThree, Flaw::too_early, 0, {Kind::backward, 1});

  ScheduleOptions split = kTwo;
  split.engine = PpEngine::zb_h1;
  lists = all_stages(split);
  lists[1].erase(find(lists[1], {Kind::backward_weight, 3}));
  expect_flaw(lists, split, Flaw::missing, 1, {Kind::backward_weight, 3});
}

TEST(ScheduleCheckTest, AnActionOnceTooOften) {
  auto lists = all_stages(kThree);
  lists[2].push_back({Kind::forward, 3});
  expect_flaw(lists, kThree, Flaw::repeated, 2, {Kind::forward, 3});
  lists[2].back() = {Kind::backward_input, 3};
  expect_flaw(lists, kThree, Flaw::repeated, 2, {Kind::backward_input, 3});
}

TEST(ScheduleCheckTest, WhatAStageDoesNotHave) {
  for (const Action& action :
       {Action{Kind::forward, 4}, Action{Kind::forward, -1}, Action{Kind::forward, 0, 1},
        Action{Kind::send_gradient, 0}, Action{Kind::receive_activation, 0}}) {
    auto lists = all_stages(kThree);
    lists[0].push_back(action);
    expect_flaw(lists, kThree, Flaw::unknown, 0, action);
  }
}

TEST(ScheduleCheckTest, OrderWithinAStage) {
  const std::pair<Action, Action> pairs[] = {
      {{Kind::forward, 1}, {Kind::backward, 1}},
      {{Kind::receive_activation, 1}, {Kind::forward, 1}},
      {{Kind::receive_gradient, 1}, {Kind::backward, 1}},
      {{Kind::forward, 1}, {Kind::send_activation, 1}},
      {{Kind::backward, 1}, {Kind::send_gradient, 1}},
  };
  for (const auto& [first, second] : pairs) {
    auto lists = all_stages(kThree);
    std::iter_swap(find(lists[1], first), find(lists[1], second));
    // The earliest action that stands too early.
    const auto found = flaw_of(lists, kThree, Delivery::rendezvous);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->flaw, Flaw::too_early) << found->what();
    EXPECT_EQ(found->stage, 1);
    EXPECT_EQ(found->action.microbatch, 1);
  }
}

TEST(ScheduleCheckTest, MessagesThatCross) {
  auto lists = all_stages(kThree);
  std::iter_swap(find(lists[0], {Kind::send_activation, 0}),
                 find(lists[0], {Kind::send_activation, 1}));
  std::iter_swap(find(lists[0], {Kind::forward, 0}), find(lists[0], {Kind::forward, 1}));
  expect_flaw(lists, kThree, Flaw::crossed, 1, {Kind::receive_activation, 0});
}

// The last stage wants the second microbatch before it gives back the first, the first stage gives
// the second one only for the first one's gradient.
TEST(ScheduleCheckTest, StagesThatWaitForEachOther) {
  Schedule narrow, wide;
  for (int64_t i = 0; i < 4; ++i) {
    narrow.push_back({Kind::forward, i});
    narrow.push_back({Kind::backward, i});
    wide.push_back({Kind::forward, i});
  }
  for (int64_t i = 0; i < 4; ++i) wide.push_back({Kind::backward, i});
  ScheduleOptions last = kTwo;
  last.stage = 1;
  const std::vector<Schedule> lists = {add_messages(narrow, kTwo), add_messages(wide, last)};
  for (const Delivery delivery : {Delivery::buffered, Delivery::rendezvous}) {
    const auto found = flaw_of(lists, kTwo, delivery);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->flaw, Flaw::circle);
    const std::string sentence = found->what();
    EXPECT_NE(sentence.find("stage 0 waits for stage 1 at its backward of microbatch 0"),
              std::string::npos)
        << sentence;
    EXPECT_NE(sentence.find("stage 1 waits for stage 0 at its forward of microbatch 1"),
              std::string::npos)
        << sentence;
  }
}

// What works only as long as the network has room for every message: the first stage computes all
// forwards before it takes a gradient, the last one sends a gradient after each forward.
TEST(ScheduleCheckTest, SendsThatNeedAReceiveWaitForEachOther) {
  ScheduleOptions first{PpEngine::afab, 0, 2, 1, 8}, last{PpEngine::one_f_one_b, 1, 2, 1, 8};
  const std::vector<Schedule> lists = {make_schedule(first), make_schedule(last)};
  EXPECT_EQ(flaw_of(lists, first, Delivery::buffered), std::nullopt);
  const auto found = flaw_of(lists, first, Delivery::rendezvous);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->flaw, Flaw::circle) << found->what();
  EXPECT_TRUE(is_send(found->action.kind)) << found->what();
}

TEST(ScheduleCheckTest, MessagesTakeTimeAndStagesDiffer) {
  const ScheduleOptions o{PpEngine::one_f_one_b, 0, 2, 1, 1};
  const ScheduleReport report = check_schedules(
      all_stages(o), o, Delivery::rendezvous,
      {.forward = 1, .backward_input = 3, .message = 0.5, .virtual_stages = {1, 2}});
  // F 1, message, F 2, B 8, message, B 4.
  EXPECT_EQ(report.makespan, 1 + 0.5 + 2 + 8 + 0.5 + 4);
  EXPECT_EQ(report.stages[1].timeline[0].begin, 1.5);
  EXPECT_EQ(report.stages[0].timeline[1].begin, 12);
  EXPECT_NEAR(report.bubble, 1 - 15 / (2 * 16.0), 1e-12);
}

TEST(ScheduleCheckTest, ThePictureOfTheHeader) {
  const ScheduleReport report =
      check_schedules(all_stages(kThree), kThree, Delivery::rendezvous,
                      {.forward = 1, .backward_input = 0.5, .backward_weight = 0.5});
  EXPECT_EQ(draw(report),
            "stage 0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3\n"
            "stage 1   .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .\n"
            "stage 2   .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .\n");
}

TEST(ScheduleCheckTest, ThePictureOfChunksAndLongActions) {
  const ScheduleOptions o{PpEngine::interleaved, 0, 2, 2, 2};
  EXPECT_EQ(draw(check_schedules(all_stages(o), o, Delivery::rendezvous)),
            "stage 0   F0a F1a F0b F1b .   .   B0b---- .   B1b---- B0a---- B1a----\n"
            "stage 1   .   F0a F1a F0b B0b---- F1b B1b---- B0a---- B1a---- .   .\n");
}

// Tests run in the repository's root.
TEST(ScheduleCheckTest, ThePicturesOfTheDocumentation) {
  std::ifstream file("docs/pipeline-parallel.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  ASSERT_FALSE(page.empty());
  for (const ScheduleOptions& o : {ScheduleOptions{PpEngine::afab, 0, 3, 1, 6},
                                   ScheduleOptions{PpEngine::one_f_one_b, 0, 3, 1, 6},
                                   ScheduleOptions{PpEngine::interleaved, 0, 3, 2, 3},
                                   ScheduleOptions{PpEngine::zb_h1, 0, 3, 1, 6}}) {
    const std::string picture = draw(check_schedules(all_stages(o), o, Delivery::rendezvous));
    EXPECT_NE(page.find(picture), std::string::npos) << to_string(o.engine) << "\n" << picture;
  }
}

}  // namespace
}  // namespace picotron
