// The runner, on a stage that only notes what it is asked: it follows the list, hands each backward
// what its own forward kept, frees it, and scales the loss once.
#include "parallel/pipeline_parallel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/record.h"

namespace picotron {
namespace {

struct Note : Saved {
  Note(int64_t tag, int& alive) : ids(tag), alive_(alive) { ++alive_; }
  ~Note() override { --alive_; }
  int64_t ids;
  int& alive_;
};

struct NotingStage : Stage {
  std::string calls;
  int alive = 0, most_alive = 0;
  double scale_seen = 0;
  Parameters parameters;
  Weight* weight = parameters.declare({{.full_shape = {3}, .shard = {0, 0, 3}}});
  NotingStage() { parameters.allocate(at::kDouble); }

  at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                     std::unique_ptr<Saved>& saved) override {
    EXPECT_EQ(chunk, 0);
    EXPECT_FALSE(x.defined()) << "the first stage reads token ids";
    saved = std::make_unique<Note>(batch.ids[0].item<int64_t>(), alive);
    most_alive = std::max(most_alive, alive);
    calls += "F" + std::to_string(batch.ids[0].item<int64_t>()) + " ";
    return batch.ids.to(at::kDouble);
  }
  at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                      std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                      Gradients& gradients) override {
    EXPECT_EQ(chunk, 0);
    EXPECT_FALSE(dy.defined()) << "the last stage has the loss";
    const int64_t id = batch.ids[0].item<int64_t>();
    EXPECT_EQ(static_cast<Note&>(*saved).ids, id) << "what another microbatch kept";
    calls += "B" + std::to_string(id) + " ";
    scale_seen = scale;
    loss.add_(static_cast<double>(id));
    gradients.sum(*weight).add_(scale * static_cast<double>(id));
    gradients.contributed(*weight);
    return {};
  }
};

std::vector<TokenBatch> batches_of(std::initializer_list<int64_t> ids) {
  std::vector<TokenBatch> batches;
  for (const int64_t id : ids) batches.push_back({1, 1, at::full({1}, id, at::kLong), {}, {}});
  return batches;
}

struct Runner {
  NotingStage stage;
  const Group alone;
  Gradients gradients{stage.parameters, alone, alone, {}};
  double run(const Schedule& schedule, const std::vector<TokenBatch>& batches) {
    return run_schedule(schedule, stage, batches, 0.25, gradients).item<double>();
  }
};

TEST(PipelineParallelTest, FollowsTheListAndScalesTheLossOnce) {
  Runner r;
  const auto batches = batches_of({7, 5, 11});
  for (int step = 0; step < 2; ++step) {
    r.stage.calls.clear();
    EXPECT_EQ(r.run(make_schedule({.microbatches = 3}), batches), (7 + 5 + 11) * 0.25);
    EXPECT_EQ(r.stage.calls, "F7 B7 F5 B5 F11 B11 ");
    EXPECT_EQ(r.stage.scale_seen, 0.25);
    EXPECT_EQ(r.stage.most_alive, 1) << "what a forward kept is freed by its backward";
    EXPECT_EQ(r.stage.alive, 0);
    EXPECT_EQ(r.stage.weight->gradient[0].item<double>(), (7 + 5 + 11) * 0.25);
  }
}

TEST(PipelineParallelTest, AllForwardsFirstKeepsAllAndGivesTheSame) {
  Runner r;
  EXPECT_EQ(
      r.run(make_schedule({.engine = PpEngine::afab, .microbatches = 3}), batches_of({7, 5, 11})),
      (7 + 5 + 11) * 0.25);
  EXPECT_EQ(r.stage.calls, "F7 F5 F11 B7 B5 B11 ");
  EXPECT_EQ(r.stage.most_alive, 3);
  EXPECT_EQ(r.stage.alive, 0);
}

TEST(PipelineParallelTest, ABackwardBeforeItsForwardIsABrokenSchedule) {
  Runner r;
  const auto batches = batches_of({7, 5});
  EXPECT_THROW(r.run({{ActionKind::forward, 0}, {ActionKind::backward, 1}}, batches),
               BrokenInvariant);
  EXPECT_THROW(
      r.run({{ActionKind::forward, 0}, {ActionKind::backward, 0}, {ActionKind::backward, 0}},
            batches),
      BrokenInvariant)
      << "twice backward";
}

TEST(PipelineParallelTest, AScheduleThatLeavesOutAMicrobatchIsFound) {
  Runner r;
  EXPECT_THROW(r.run(make_schedule({.microbatches = 1}), batches_of({7, 5})), BrokenInvariant);
}

TEST(PipelineParallelTest, EveryActionIsInTheRecord) {
  Runner r;
  record::Recorder recorder;
  const record::Attach attached(&recorder);
  r.run(make_schedule({.microbatches = 2}), batches_of({7, 5}));
  std::string seen;
  for (const record::Entry& entry : recorder.entries()) {
    if (entry.kind != record::Kind::action) continue;
    seen += std::string(entry.what) + std::to_string(entry.shape[0]) + " ";
    EXPECT_NE(entry.end_ns, 0);
  }
  EXPECT_EQ(seen, "forward0 backward0 forward1 backward1 ");
}

}  // namespace
}  // namespace picotron
