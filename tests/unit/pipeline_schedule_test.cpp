// Schedules as data: every list of every engine for up to 8 stages, 32 microbatches and 4 chunks,
// against the closed formulas of length, order, activations kept and bubble.
#include "parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include "parallel/schedule_check.h"

namespace picotron {
namespace {

constexpr double kExact = 1e-12;

// "F0 F1 B0 …": the computation of a list, as the picture in the header.
std::string text_of(const Schedule& schedule) {
  std::string text;
  for (const Action& action : schedule) {
    if (is_message(action.kind)) continue;
    const char letter = action.kind == ActionKind::forward           ? 'F'
                        : action.kind == ActionKind::backward_weight ? 'W'
                                                                     : 'B';
    if (!text.empty()) text += ' ';
    text += letter + std::to_string(action.microbatch);
    if (action.chunk > 0) text += static_cast<char>('a' + action.chunk);
  }
  return text;
}

std::string text_of(PpEngine engine, int stage, int stages, int64_t microbatches, int chunks = 1) {
  return text_of(make_schedule({.engine = engine,
                                .stage = stage,
                                .stages = stages,
                                .chunks = chunks,
                                .microbatches = microbatches}));
}

// Calls `test` for each size of an engine, with a trace that names it.
void for_all(PpEngine engine, const std::function<void(const ScheduleOptions&)>& test) {
  const int most_chunks = engine == PpEngine::interleaved ? 4 : 1;
  for (int stages = 1; stages <= 8; ++stages) {
    for (int chunks = 1; chunks <= most_chunks; ++chunks) {
      for (int64_t microbatches = 1; microbatches <= 32; ++microbatches) {
        SCOPED_TRACE(testing::Message()
                     << to_string(engine) << ": " << stages << " stages, " << chunks << " chunks, "
                     << microbatches << " microbatches");
        test({engine, 0, stages, chunks, microbatches});
      }
    }
  }
}

constexpr PpEngine kEngines[] = {PpEngine::afab, PpEngine::one_f_one_b, PpEngine::interleaved,
                                 PpEngine::zb_h1};

// The order of everything is check_schedules()' business, which throws; NCCL's rules must cost no
// time beyond that of the most lenient ones.
TEST(PipelineScheduleTest, NoListWaitsForItselfAndRendezvousCostNothing) {
  for (const PpEngine engine : kEngines) {
    for_all(engine, [](ScheduleOptions o) {
      for (o.forward_only = false;; o.forward_only = true) {
        const std::vector<Schedule> lists = all_stages(o);
        const ScheduleReport lenient = check_schedules(lists, o, Delivery::buffered);
        const ScheduleReport strict = check_schedules(lists, o, Delivery::rendezvous);
        EXPECT_NEAR(strict.makespan, lenient.makespan, kExact);
        if (o.forward_only) return;
      }
    });
  }
}

TEST(PipelineScheduleTest, NumberOfActions) {
  for (const PpEngine engine : kEngines) {
    for_all(engine, [&](ScheduleOptions o) {
      const int64_t halves = engine == PpEngine::zb_h1 ? 3 : 2;  // F B, or F B W
      int64_t sends = 0;
      for (const Schedule& list : all_stages(o)) {
        EXPECT_EQ(std::ranges::count_if(list, [](Action a) { return !is_message(a.kind); }),
                  halves * o.chunks * o.microbatches);
        sends += std::ranges::count_if(list, [](Action a) { return is_send(a.kind); });
      }
      EXPECT_EQ(sends, 2 * (o.virtual_stages() - 1) * o.microbatches);
    });
  }
}

TEST(PipelineScheduleTest, Bubble) {
  for (const PpEngine engine : kEngines) {
    for_all(engine, [&](ScheduleOptions o) {
      const double p = o.stages, m = static_cast<double>(o.microbatches), c = o.chunks;
      const double bubble =
          check_schedules(all_stages(o), o, Delivery::rendezvous).bubble;  // F 1, B 1 + 1
      const bool whole_groups = o.microbatches % o.stages == 0;
      if (engine == PpEngine::zb_h1) {
        // (p − 1) · (F + B − W) of idle time a stage where 1F1B has (p − 1) · (F + B + W).
        if (o.microbatches >= o.stages) {
          EXPECT_NEAR(bubble, (p - 1) / (3 * m + p - 1), kExact);
        }
        EXPECT_LE(bubble, (p - 1) / (m + p - 1) + kExact);
      } else if (c == 1 || whole_groups) {
        EXPECT_NEAR(bubble, (p - 1) / (c * m + p - 1), kExact);
      } else if (o.microbatches > o.stages) {
        // No later than with microbatches that fill the last group.
        const double filled = std::ceil(m / p) * p;
        EXPECT_LE(c * m * 3 / (1 - bubble), 3 * (c * filled + p - 1) + kExact);
      }
    });
  }
}

TEST(PipelineScheduleTest, ActivationsKept) {
  for (const PpEngine engine : kEngines) {
    for_all(engine, [&](ScheduleOptions o) {
      const ScheduleReport report = check_schedules(all_stages(o), o, Delivery::rendezvous);
      for (int stage = 0; stage < o.stages; ++stage) {
        const StageReport& of = report.stages[static_cast<size_t>(stage)];
        const int64_t all = o.chunks * o.microbatches;
        const int64_t behind = o.stages - 1 - stage;
        switch (engine) {
          case PpEngine::afab:
            EXPECT_EQ(of.most_kept, all);
            break;
          case PpEngine::zb_h1:  // no more than 1F1B's first stage
            EXPECT_EQ(of.most_kept, std::min<int64_t>(o.stages, all)) << stage;
            break;
          default:
            const int64_t most =
                o.chunks == 1 ? behind + 1 : 2 * behind + o.stages * (o.chunks - 1) + 1;
            if (o.chunks == 1 || o.microbatches % o.stages == 0) {
              EXPECT_EQ(of.most_kept, std::min(most, all)) << stage;
            }
            EXPECT_LE(of.most_kept, most) << stage;
        }
        const int64_t saved = engine == PpEngine::zb_h1 ? std::min(behind + 1, all) : of.most_kept;
        EXPECT_EQ(of.most_saved, saved) << stage;
        EXPECT_LE(of.most_in_flight, engine == PpEngine::interleaved ? o.stages : 2) << stage;
      }
    });
  }
}

TEST(PipelineScheduleTest, OneStageIsGradientAccumulation) {
  EXPECT_EQ(text_of(PpEngine::one_f_one_b, 0, 1, 3), "F0 B0 F1 B1 F2 B2");
  EXPECT_EQ(text_of(PpEngine::zb_h1, 0, 1, 2), "F0 B0 W0 F1 B1 W1");
}

TEST(PipelineScheduleTest, TheListsOfThreeStages) {
  EXPECT_EQ(text_of(PpEngine::one_f_one_b, 0, 3, 4), "F0 F1 F2 B0 F3 B1 B2 B3");
  EXPECT_EQ(text_of(PpEngine::one_f_one_b, 1, 3, 4), "F0 F1 B0 F2 B1 F3 B2 B3");
  EXPECT_EQ(text_of(PpEngine::one_f_one_b, 2, 3, 4), "F0 B0 F1 B1 F2 B2 F3 B3");
  EXPECT_EQ(text_of(PpEngine::one_f_one_b, 0, 4, 2), "F0 F1 B0 B1");
  EXPECT_EQ(text_of(PpEngine::afab, 1, 3, 3), "F0 F1 F2 B0 B1 B2");
  EXPECT_EQ(text_of(PpEngine::interleaved, 1, 2, 2, 2), "F0 F1 F0b B0b F1b B1b B0 B1");
  EXPECT_EQ(text_of(PpEngine::interleaved, 1, 2, 3, 2),
            "F0 F1 F0b B0b F1b B1b F2 B0 B1 F2b B2b B2");
  EXPECT_EQ(text_of(PpEngine::zb_h1, 2, 3, 4), "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3");
}

TEST(PipelineScheduleTest, AReceiveIsStartedOneComputationAhead) {
  const Schedule list = make_schedule({.stage = 1, .stages = 3, .microbatches = 1});
  EXPECT_EQ(list, (Schedule{{ActionKind::receive_activation, 0},
                            {ActionKind::receive_gradient, 0},
                            {ActionKind::forward, 0},
                            {ActionKind::send_activation, 0},
                            {ActionKind::backward, 0},
                            {ActionKind::send_gradient, 0}}));
}

TEST(PipelineScheduleTest, OptionsThatDoNotFit) {
  EXPECT_THROW(make_schedule({.stage = 2, .stages = 2}), BrokenInvariant);
  EXPECT_THROW(make_schedule({.chunks = 2}), BrokenInvariant);
}

// The best largest cost and, of those, the smallest sum of squares, over every split.
void try_splits(std::vector<double>& cost, size_t place, int64_t left,
                std::pair<double, double>& best) {
  if (place + 1 == cost.size()) {
    const double before = std::exchange(cost.back(), cost.back() + static_cast<double>(left));
    double sum = 0;
    for (const double c : cost) sum += c * c;
    best = std::min(best, {*std::ranges::max_element(cost), sum});
    cost.back() = before;
    return;
  }
  const auto behind = static_cast<int64_t>(cost.size() - place - 1);
  for (int64_t n = 1; n <= left - behind; ++n) {
    cost[place] += static_cast<double>(n);
    try_splits(cost, place + 1, left - n, best);
    cost[place] -= static_cast<double>(n);
  }
}

TEST(PipelineScheduleTest, LayersAreSplitAsWellAsAnySplitCan) {
  for (int stages = 1; stages <= 5; ++stages) {
    for (int64_t layers = stages; layers <= 14; ++layers) {
      for (const double embedding : {0.0, 0.25, 1.5}) {
        for (const double head : {0.0, 0.75, 2.0, 3.25}) {
          SCOPED_TRACE(testing::Message() << layers << " layers, " << stages << " stages, "
                                          << embedding << ", " << head);
          const auto counts = split_layers(layers, stages, embedding, head);
          std::vector<double> cost(counts.begin(), counts.end()), none(counts.size(), 0);
          int64_t total = 0;
          for (const int64_t count : counts) {
            EXPECT_GE(count, 1);
            total += count;
          }
          EXPECT_EQ(total, layers);
          for (std::vector<double>* costs : {&cost, &none}) {
            costs->front() += embedding;
            costs->back() += head;
          }
          double sum = 0;
          for (const double c : cost) sum += c * c;
          std::pair<double, double> best(1e9, 0);
          try_splits(none, 0, layers, best);
          EXPECT_NEAR(*std::ranges::max_element(cost), best.first, kExact);
          EXPECT_NEAR(sum, best.second, 1e-9);
        }
      }
    }
  }
}

TEST(PipelineScheduleTest, AnEvenSplitHasItsLongerPartsFirst) {
  EXPECT_EQ(split_layers(5, 2), (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(split_layers(30, 4), (std::vector<int64_t>{8, 8, 7, 7}));
  EXPECT_EQ(split_layers(3, 3), (std::vector<int64_t>{1, 1, 1}));
  EXPECT_THROW(split_layers(2, 3), BrokenInvariant);
}

}  // namespace
}  // namespace picotron
