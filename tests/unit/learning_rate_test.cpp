// Learning-rate schedules, as tables of step and rate.
#include "train/learning_rate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

namespace picotron {
namespace {

using Table = std::vector<std::pair<int64_t, double>>;

void expect_rates(const Training& training, const Table& table) {
  for (const auto& [step, rate] : table) {
    EXPECT_NEAR(learning_rate(training, step), rate, 1e-15) << "step " << step;
  }
}

Training of(LrSchedule schedule, int64_t warmup) {
  return {.learning_rate = 0.1,
          .total_train_steps = 20,
          .lr_schedule = schedule,
          .warmup_steps = warmup,
          .min_lr_ratio = 0.2,
          .lr_decay_ratio = 0.25};
}

TEST(LearningRateTest, ConstantIsConstantAndHasNoMinimum) {
  expect_rates(of(LrSchedule::constant, 0), {{1, 0.1}, {2, 0.1}, {10, 0.1}, {20, 0.1}});
}

TEST(LearningRateTest, WarmupIsLinearAndTheFirstStepAlreadyLearns) {
  for (const LrSchedule schedule : {LrSchedule::constant, LrSchedule::cosine, LrSchedule::wsd})
    expect_rates(of(schedule, 4), {{1, 0.025}, {2, 0.05}, {3, 0.075}, {4, 0.1}});
  expect_rates(of(LrSchedule::constant, 1), {{1, 0.1}, {2, 0.1}});
}

TEST(LearningRateTest, CosineGoesFromTheTopToTheMinimum) {
  // Steps 4 … 20 are the half period: 16 steps, the middle is step 12.
  const double quarter = 0.02 + 0.08 * 0.5 * (1 + std::cos(std::numbers::pi / 4));
  expect_rates(of(LrSchedule::cosine, 4),
               {{4, 0.1}, {8, quarter}, {12, 0.06}, {16, 0.12 - quarter}, {20, 0.02}});
  expect_rates(of(LrSchedule::cosine, 0), {{10, 0.06}, {20, 0.02}, {25, 0.02}});
  Training to_zero = of(LrSchedule::cosine, 0);
  to_zero.min_lr_ratio = 0;
  expect_rates(to_zero, {{20, 0.0}});
}

TEST(LearningRateTest, CosineNeverRisesAfterTheWarmup) {
  const Training training = of(LrSchedule::cosine, 5);
  for (int64_t step = 6; step <= 20; ++step)
    EXPECT_LT(learning_rate(training, step), learning_rate(training, step - 1));
}

TEST(LearningRateTest, WsdIsStableAndThenLinearlyDown) {
  // The last quarter of 20 steps decays: after step 15, to a fifth at step 20.
  expect_rates(of(LrSchedule::wsd, 4), {{4, 0.1},
                                        {14, 0.1},
                                        {15, 0.1},
                                        {16, 0.1 * (1 - 0.8 / 5)},
                                        {18, 0.1 * (1 - 3 * 0.8 / 5)},
                                        {20, 0.02}});
  Training no_decay = of(LrSchedule::wsd, 0);
  no_decay.lr_decay_ratio = 0;
  expect_rates(no_decay, {{1, 0.1}, {20, 0.1}});
}

TEST(LearningRateTest, AWarmupAsLongAsTheRunEndsAtTheTop) {
  for (const LrSchedule schedule : {LrSchedule::constant, LrSchedule::cosine})
    expect_rates(of(schedule, 20), {{1, 0.005}, {10, 0.05}, {20, 0.1}});
  expect_rates(of(LrSchedule::cosine, 40), {{1, 0.0025}, {20, 0.05}});
}

}  // namespace
}  // namespace picotron
