// The runner, on a stage that only notes what it is asked: it follows the list, hands each backward
// what its own forward kept, frees it, and scales the loss once. Then on a small model over 1 to 4
// ranks, beside the same model on one.
#include "parallel/pipeline_parallel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/record.h"
#include "dist/collectives.h"
#include "dist_ranks.h"
#include "parallel/schedule_check.h"

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
  at::Tensor evaluate(int, const TokenBatch& batch, const at::Tensor&,
                      const at::Tensor& loss) override {
    loss.add_(batch.ids[0].item<double>());
    return {};
  }
  at::Tensor empty_input(const TokenBatch&) const override { return at::empty({1}, at::kDouble); }
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
    return run_schedule(schedule, stage, batches, 0.25, gradients, {}).item<double>();
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

// A model of 13 layers y = tanh(x wᵀ), spread over the virtual stages of a pipeline: the embedding
// before, the loss Σ ½ (Σ y − target)² behind.
constexpr int64_t kLayers = 13, kHidden = 3, kTokens = 4;
constexpr double kScale = 0.125;

struct ToySaved : Saved {
  explicit ToySaved(int& now) : alive(now) { ++alive; }
  ~ToySaved() override { --alive; }
  int& alive;
  std::vector<at::Tensor> x;  // of each layer, and the last one's output
};

struct Toy : Stage {
  Toy(int stage, int stages, int chunks) {
    const std::vector<int64_t> counts = split_layers(kLayers, stages * chunks);
    int64_t layer = 0;
    for (int place = 0; place < stages * chunks; ++place) {
      const int64_t end = layer + counts[static_cast<size_t>(place)];
      if (place % stages != stage) {
        layer = end;
        continue;
      }
      chunk_layers.emplace_back();
      for (; layer < end; ++layer) {
        chunk_layers.back().push_back(parameters.declare({{.name = std::to_string(layer),
                                                           .full_shape = {kHidden, kHidden},
                                                           .shard = {0, 0, kHidden}}}));
      }
    }
    parameters.allocate(at::kDouble);
    for (const Parameter& parameter : parameters.list()) {
      const double start = std::stod(parameter.name);
      parameter.value.copy_(
          at::sin(at::arange(kHidden * kHidden, at::kDouble) * 1.7 + start).view({kHidden, -1}));
    }
    last_place = stages * chunks - 1;
    place_of = [=](int chunk) { return chunk * stages + stage; };
  }

  at::Tensor enter(int chunk, const TokenBatch& batch, const at::Tensor& x) const {
    EXPECT_EQ(x.defined(), place_of(chunk) > 0);
    if (x.defined()) return x;
    return at::cos(batch.ids.to(at::kDouble).unsqueeze(1) + at::arange(kHidden, at::kDouble));
  }
  at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                     std::unique_ptr<Saved>& saved) override {
    auto kept = std::make_unique<ToySaved>(alive);
    most_alive = std::max(most_alive, alive);
    kept->x = {enter(chunk, batch, x)};
    for (const Weight* w : chunk_layers.at(static_cast<size_t>(chunk)))
      kept->x.push_back(at::tanh(at::matmul(kept->x.back(), w->value.t())));
    const at::Tensor y = kept->x.back();
    saved = std::move(kept);
    return y;
  }
  at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                      std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                      Gradients& gradients) override {
    const std::vector<at::Tensor>& x = static_cast<ToySaved&>(*saved).x;
    at::Tensor d = dy;
    EXPECT_EQ(d.defined(), place_of(chunk) < last_place);
    if (!d.defined()) {
      const at::Tensor off = x.back().sum(1, /*keepdim=*/true) - batch.targets.unsqueeze(1);
      loss.add_((off * off).sum() / 2);
      d = scale * off.expand({kTokens, kHidden});
    }
    const auto& layers = chunk_layers.at(static_cast<size_t>(chunk));
    for (size_t i = layers.size(); i-- > 0;) {
      d = d * (1 - x[i + 1] * x[i + 1]);
      gradients.accumulate(*layers[i], d, x[i]);
      d = at::matmul(d, layers[i]->value);
    }
    return place_of(chunk) > 0 ? d : at::Tensor();
  }
  at::Tensor evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                      const at::Tensor& loss) override {
    at::Tensor y = enter(chunk, batch, x);
    for (const Weight* w : chunk_layers.at(static_cast<size_t>(chunk)))
      y = at::tanh(at::matmul(y, w->value.t()));
    if (place_of(chunk) == last_place) {
      const at::Tensor off = y.sum(1) - batch.targets;
      loss.add_((off * off).sum() / 2);
    }
    return y;
  }
  at::Tensor empty_input(const TokenBatch& batch) const override {
    return at::full({batch.rows * batch.columns, kHidden}, std::nan(""), at::kDouble);
  }

  Parameters parameters;
  std::vector<std::vector<Weight*>> chunk_layers;
  std::function<int(int)> place_of;
  int last_place = 0, alive = 0, most_alive = 0;
};

std::vector<TokenBatch> toy_batches(int64_t microbatches) {
  std::vector<TokenBatch> batches;
  for (int64_t i = 0; i < microbatches; ++i) {
    const at::Tensor ids = at::arange(kTokens, at::kLong) * 5 + i;
    batches.push_back({1, kTokens, ids, (ids * 3) % 7, {}});
  }
  return batches;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

// The weight half of a split backward multiplies when the list says so, and not before.
TEST(PipelineParallelTest, WeightGradientsWaitForTheirAction) {
  const Group alone;
  Toy toy(0, 1, 1);
  Gradients gradients(toy.parameters, alone, alone, {});
  record::Recorder recorder;
  const record::Attach attached(&recorder);
  const Schedule list = {{ActionKind::forward, 0},         {ActionKind::forward, 1},
                         {ActionKind::backward_input, 0},  {ActionKind::backward_input, 1},
                         {ActionKind::backward_weight, 1}, {ActionKind::backward_weight, 0}};
  run_schedule(list, toy, toy_batches(2), kScale, gradients, {});
  std::string seen;
  int64_t products = 0;
  for (const record::Entry& entry : recorder.entries()) {
    if (entry.kind == record::Kind::product) ++products;
    if (entry.kind != record::Kind::action) continue;
    if (products > 0) seen += std::to_string(std::exchange(products, 0)) + " products ";
    seen += std::string(entry.what) + std::to_string(entry.shape[0]) + " ";
  }
  EXPECT_EQ(seen,
            "forward0 forward1 backward_input0 backward_input1 backward_weight1 13 products "
            "backward_weight0 ");
  EXPECT_EQ(products, kLayers);
}

struct Pipeline {
  PpEngine engine;
  int stages, chunks;
};
class PipelineParallelRanks : public ::testing::TestWithParam<Pipeline> {};

// Loss and gradients of any engine on any number of stages, beside one stage's; the bytes of the
// formula; and as many Saved objects as the checker says.
TEST_P(PipelineParallelRanks, TrainTheModelOfOneStage) {
  const auto [engine, stages, chunks] = GetParam();
  const Group alone;
  testing::run_ranks(stages, [&, e = engine, p = stages, c = chunks](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.pp = p}, rendezvous, {.pp_chunks = c});
    Toy toy(mesh.my.pp, p, c), whole(0, 1, 1);
    // Small buckets, so that several are reduced while backward still runs.
    Gradients gradients(toy.parameters, alone, alone, {.bucket_numel = 2 * kHidden * kHidden});
    Gradients expected(whole.parameters, alone, alone, {});
    for (int64_t m = 1; m <= 8; ++m) {
      SCOPED_TRACE(::testing::Message() << m << " microbatches, stage " << mesh.my.pp);
      const std::vector<TokenBatch> batches = toy_batches(m);
      ScheduleOptions options{e, mesh.my.pp, p, c, m};
      const at::Tensor right =
          run_schedule(make_schedule({.microbatches = m}), whole, batches, kScale, expected, {});
      const auto sent = [](const record::Bytes& before) {
        const auto bytes = record::bytes_sent_since(before)[static_cast<size_t>(record::Axis::pp)];
        return at::full({}, static_cast<double>(bytes), at::kDouble);
      };
      const double tensor = static_cast<double>(kTokens * kHidden) * sizeof(double);
      const double steps = p == 1 ? 0 : static_cast<double>(m * (options.virtual_stages() - 1));

      toy.most_alive = 0;
      record::Bytes before = record::bytes_sent();
      const at::Tensor loss =
          run_schedule(make_schedule(options), toy, batches, kScale, gradients, mesh);
      at::Tensor bytes = sent(before);
      if (!mesh.is_last_stage()) {
        EXPECT_EQ(loss.item<double>(), 0);
      }
      all_reduce(loss, mesh.world).wait();
      all_reduce(bytes, mesh.world).wait();
      EXPECT_LT(distance(loss, right), 1e-12);
      EXPECT_EQ(bytes.item<double>(), 2 * steps * tensor);
      for (const Parameter& parameter : toy.parameters.list()) {
        const auto layer = static_cast<size_t>(std::stoi(parameter.name));
        EXPECT_LT(distance(parameter.gradient, whole.parameters.list()[layer].gradient), 1e-12)
            << "layer " << layer;
      }
      const ScheduleReport report =
          check_schedules(all_stages(options), options, Delivery::rendezvous);
      EXPECT_EQ(toy.most_alive, report.stages[static_cast<size_t>(mesh.my.pp)].most_saved);
      EXPECT_EQ(toy.alive, 0);

      options.forward_only = true;
      before = record::bytes_sent();
      const at::Tensor evaluated = run_forward(make_schedule(options), toy, batches, mesh);
      bytes = sent(before);
      all_reduce(evaluated, mesh.world).wait();
      all_reduce(bytes, mesh.world).wait();
      EXPECT_LT(distance(evaluated * kScale, right), 1e-12);
      EXPECT_EQ(bytes.item<double>(), steps * tensor);
    }
  });
}
INSTANTIATE_TEST_SUITE_P(
    Engines, PipelineParallelRanks, ::testing::ValuesIn([] {
      std::vector<Pipeline> all;
      for (int stages = 1; stages <= 4; ++stages) {
        for (const PpEngine engine : {PpEngine::afab, PpEngine::one_f_one_b, PpEngine::zb_h1})
          all.push_back({engine, stages, 1});
        for (int chunks = 2; chunks <= 3; ++chunks)
          all.push_back({PpEngine::interleaved, stages, chunks});
      }
      return all;
    }()),
    [](const auto& test) {
      std::string name(to_string(test.param.engine));
      std::erase(name, '-');
      return name + "_stages" + std::to_string(test.param.stages) + "_chunks" +
             std::to_string(test.param.chunks);
    });

}  // namespace
}  // namespace picotron
