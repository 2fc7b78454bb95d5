// What a run says when something is wrong: NaN and infinities planted in weights, in single modules
// and in gradients, bits flipped in one replica, and losses that jump. Ranks are threads; every one
// of them must say the same sentence.
#include "train/health.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "dist/device.h"
#include "dist_ranks.h"
#include "train/layout.h"
#include "train/train.h"
#include "train/verify.h"

namespace picotron {
namespace {

constexpr double kHuge = 3e38;  // a product with it is beyond float32
const std::string kLayer1 = "model.layers.1.";

struct Layout {
  Distributed distributed = {};
  int64_t key_value_heads = 4, layers = 2;
  bool tied = false;
  DType dtype = DType::float32;
  Recompute recompute = Recompute::none;
  int64_t desync_check = 0, steps = 3;
};

ShrunkRun small_run(const Layout& layout) {
  Config config;
  config.distributed = layout.distributed;
  config.training.micro_batch_size = 2;
  config.training.gradient_accumulation_steps = 2;
  config.training.recompute = layout.recompute;
  config.logging.desync_check = layout.desync_check;
  const LlamaConfig model{.name = "test",
                          .vocab_size = 64,
                          .hidden_size = 64,
                          .intermediate_size = 64,
                          .num_hidden_layers = layout.layers,
                          .num_attention_heads = 4,
                          .num_key_value_heads = layout.key_value_heads,
                          .head_dim = 8,
                          .rms_norm_eps = 1e-5,
                          .tie_word_embeddings = layout.tied,
                          .attention_bias = true,
                          .mlp_bias = true};
  ShrunkRun run = shrink(config, model, layout.dtype, OptimizerKind::adamw);
  run.config.training.total_train_steps = layout.steps;
  return run;
}

// What every rank says as the run stops, which must be the same; "" where it does not stop.
std::string said(const Layout& layout, const TrainObserver& observer) {
  const Run run = rehearse(small_run(layout));
  std::vector<std::string> sentences(static_cast<size_t>(world_size(run.config)));
  testing::run_ranks(static_cast<int>(sentences.size()), [&](const Rendezvous& rendezvous) {
    at::set_num_threads(1);
    const auto device = open_device({.use_cpu = true});
    try {
      train(run, rendezvous, *device, observer);
    } catch (const RunError& error) {
      sentences[static_cast<size_t>(rendezvous.global_rank)] = error.what();
    }
  });
  for (const std::string& sentence : sentences) EXPECT_EQ(sentence, sentences[0]);
  return sentences[0];
}

// Undefined where the rank's stage does not hold it.
at::Tensor value_of(const Parameters& parameters, const std::string& name) {
  for (const Parameter& parameter : parameters.list())
    if (parameter.name == name) return parameter.value;
  return {};
}

constexpr int kEveryRank = -1;
using Change = std::function<void(const Parameters&)>;

// Changes the weights of one rank, or of every one, after the update of step `step`.
TrainObserver changing_weights(const Change& change, int rank = kEveryRank, int64_t step = 1) {
  TrainObserver observer;
  observer.after_update = [=](const StepView& view) {
    const bool here = rank == kEveryRank || rank == view.mesh.global_rank;
    if (here && view.step == step) change(view.model.parameters());
  };
  return observer;
}

// Fills weights, where they are.
Change filling(const std::vector<std::pair<std::string, double>>& weights) {
  return [=](const Parameters& parameters) {
    for (const auto& [name, value] : weights)
      if (const at::Tensor x = value_of(parameters, name + ".weight"); x.defined()) x.fill_(value);
  };
}

void expect_says(const std::string& sentence, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(sentence.find(part), std::string::npos) << part << "\nis not in\n" << sentence;
}

// A layout of two ranks, and rank 1's place in it. Replicas keep what is planted in one of them:
// ZeRO-1 would give it to all.
struct Two {
  const char* name;
  Distributed distributed;
  std::string rank_1;
};
void PrintTo(const Two& two, std::ostream* out) {
  *out << two.name;
}
const std::vector<Two> kTwoRanks = {
    {"tp", {.tp_size = 2}, "rank 1 (tp 1)"},
    {"pp", {.pp_size = 2}, "rank 1 (pp 1)"},
    {"cp", {.cp_size = 2, .zero_stage = 0}, "rank 1 (cp 1)"},
    {"dp", {.dp_size = 2, .zero_stage = 0}, "rank 1 (dp 1)"},
};

class TwoRanksTest : public ::testing::TestWithParam<Two> {
 protected:
  Layout layout() const { return {.distributed = GetParam().distributed}; }
};
INSTANTIATE_TEST_SUITE_P(Layouts, TwoRanksTest, ::testing::ValuesIn(kTwoRanks),
                         [](const auto& test) { return test.param.name; });

// ---------------------------------------------------------------------------- weights

TEST_P(TwoRanksTest, AWeightThatIsNotFiniteIsNamedWithItsRank) {
  const auto one_element = [](double value) {
    return [value](const Parameters& parameters) {
      value_of(parameters, kLayer1 + "mlp.up_proj.weight").view({-1})[3] = value;
    };
  };
  expect_says(said(layout(), changing_weights(one_element(NAN), /*rank=*/1)),
              {"step 2: loss NaN and gradient norm NaN: ",
               kLayer1 + "mlp.up_proj.weight itself holds NaN on " + GetParam().rank_1,
               "older checkpoint"});
  expect_says(said(layout(), changing_weights(one_element(-INFINITY), /*rank=*/1)),
              {"mlp.up_proj.weight itself holds infinity on " + GetParam().rank_1});
}

TEST(NotFiniteTest, TheFirstOfSeveralWeightsIsNamed) {
  const auto change = filling({{"lm_head", NAN},
                               {kLayer1 + "self_attn.v_proj", NAN},
                               {kLayer1 + "post_attention_layernorm", NAN}});
  expect_says(said({}, changing_weights(change)),
              {"step 2", kLayer1 + "self_attn.v_proj.weight itself holds NaN on rank 0,"});
}

// Layers 0 and 2 on the first stage, 1 and 3 on the second.
Layout interleaved() {
  return {.distributed = {.pp_size = 2, .pp_engine = PpEngine::interleaved, .pp_chunks = 2},
          .layers = 4};
}

TEST(NotFiniteTest, TheFirstModuleOfTheModelIsNotThatOfTheFirstRank) {
  const std::string first = kLayer1 + "mlp.gate_proj", second = "model.layers.2.input_layernorm";
  expect_says(said(interleaved(), changing_weights(filling({{first, NAN}, {second, NAN}}))),
              {first + ".weight itself holds NaN on rank 1 (pp 1)"});
  expect_says(said(interleaved(), changing_weights(filling({{first, kHuge}, {second, kHuge}}))),
              {"wrong first in " + first + ", whose", "on rank 1 (pp 1)"});
}

// ---------------------------------------------------------------------------- forward

struct Overflow {
  std::string module;  // goes wrong first
  std::vector<std::pair<std::string, double>> weights;
};

std::vector<Overflow> overflows() {
  const std::string attention = kLayer1 + "self_attn", mlp = kLayer1 + "mlp";
  return {
      {kLayer1 + "input_layernorm", {{kLayer1 + "input_layernorm", kHuge}}},
      {attention + ".q_proj", {{attention + ".q_proj", kHuge}}},
      {attention + ".k_proj", {{attention + ".k_proj", kHuge}}},
      {attention + ".v_proj", {{attention + ".v_proj", kHuge}}},
      {attention, {{attention + ".q_proj", 1e20}, {attention + ".k_proj", 1e20}}},
      {attention + ".o_proj", {{attention + ".v_proj", 1e9}, {attention + ".o_proj", kHuge}}},
      {kLayer1 + "post_attention_layernorm", {{kLayer1 + "post_attention_layernorm", kHuge}}},
      {mlp + ".gate_proj", {{mlp + ".gate_proj", kHuge}}},
      {mlp + ".up_proj", {{mlp + ".up_proj", kHuge}}},
      {mlp, {{mlp + ".gate_proj", 1e25}, {mlp + ".up_proj", 1e25}}},
      {mlp + ".down_proj",
       {{mlp + ".gate_proj", 1e3}, {mlp + ".up_proj", 1e3}, {mlp + ".down_proj", kHuge}}},
      {"model.norm", {{"model.norm", kHuge}}},
      {"lm_head", {{"lm_head", kHuge}}},
  };
}

TEST(NotFiniteTest, TheModuleThatOverflowsIsNamedWhateverBackwardComputesAgain) {
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    for (const Overflow& overflow : overflows()) {
      SCOPED_TRACE(overflow.module);
      const std::string sentence = said({.distributed = {}, .recompute = recompute},
                                        changing_weights(filling(overflow.weights)));
      expect_says(sentence, {"step 2: loss ", "wrong first in " + overflow.module + ", whose",
                             "in microbatch 0 on rank 0;", "training.learning_rate"});
    }
  }
}

TEST(NotFiniteTest, BFloat16OverflowsAtTheSameModules) {
  for (const Overflow& overflow : overflows()) {
    SCOPED_TRACE(overflow.module);
    expect_says(said({.distributed = {}, .dtype = DType::bfloat16},
                     changing_weights(filling(overflow.weights))),
                {"wrong first in " + overflow.module + ", whose"});
  }
}

TEST_P(TwoRanksTest, AnOverflowOnOneRankIsNamedWithIt) {
  const auto change = filling({{kLayer1 + "mlp.gate_proj", 1e25}, {kLayer1 + "mlp.up_proj", 1e25}});
  expect_says(said(layout(), changing_weights(change, /*rank=*/1)),
              {"step 2: loss ", "wrong first in " + kLayer1 + "mlp, whose output holds",
               "in microbatch 0 on " + GetParam().rank_1 + ";"});
}

TEST(NotFiniteTest, OfASumOverTensorParallelNoRankIsBlamed) {
  const auto change = filling({{kLayer1 + "mlp.gate_proj", 1e3},
                               {kLayer1 + "mlp.up_proj", 1e3},
                               {kLayer1 + "mlp.down_proj", kHuge}});
  for (const bool sequence_parallel : {false, true}) {
    const Layout layout{.distributed = {.tp_size = 2, .sequence_parallel = sequence_parallel}};
    expect_says(said(layout, changing_weights(change, /*rank=*/1)),
                {kLayer1 + "mlp.down_proj, whose output, summed over tp, holds "});
  }
}

// ---------------------------------------------------------------------------- one model, directly

// A model of one rank with whatever batches a test wants.
class OneRankTest : public ::testing::Test {
 protected:
  // The sentence of a step with such figures.
  std::string said_of(double loss, double norm, bool overwritten = false) {
    try {
      stop_at({{.step = 7, .loss = loss, .grad_norm = norm}, batches, overwritten}, run, mesh,
              model, gradients);
    } catch (const RunError& error) {
      return error.what();
    }
  }
  at::Tensor value(const std::string& name) { return value_of(model.parameters(), name); }
  void fill_random() {
    uint64_t state = 1;
    for (const Parameter& parameter : model.parameters().list()) {
      const at::Tensor flat = parameter.value.view({-1});
      for (int64_t i = 0; i < flat.numel(); ++i) {
        state = state * 6364136223846793005 + 1442695040888963407;
        flat[i] = (static_cast<double>(state >> 40) / (1 << 24) - 0.5) / 5;
      }
      if (parameter.role == Role::norm) flat.add_(1);
    }
  }
  // Microbatches of one row of these tokens.
  void set_batches(const std::vector<std::vector<int64_t>>& rows) {
    for (const auto& row : rows) {
      const at::Tensor ids = at::tensor(row, at::kLong);
      batches.push_back({1, ids.numel(), ids, ids.roll(-1), at::arange(ids.numel())});
    }
  }

  const at::NoGradGuard no_grad;
  const picotron::Run run = rehearse(small_run({}));
  const Mesh mesh = make_mesh(axis_sizes(run.config), Rendezvous{});
  Llama model{run.architecture, mesh, llama_options(run, 0, at::kCPU)};
  Gradients gradients{model.parameters(), mesh.dp_cp, mesh.world, {}};
  std::vector<TokenBatch> batches;
};

TEST_F(OneRankTest, TheMicrobatchIsNamed) {
  fill_random();
  set_batches({{1, 2, 3, 4}, {3, 5, 1, 2}});
  // Only token 5 has anything in the column that q_proj multiplies by a huge number.
  const at::Tensor embedding = value("model.embed_tokens.weight");
  embedding.select(1, 0).zero_();
  embedding[5].zero_();
  embedding[5][0] = 1;
  const at::Tensor query = value("model.layers.0.self_attn.q_proj.weight");
  query.zero_();
  query.select(1, 0).fill_(kHuge);
  expect_says(said_of(NAN, NAN), {"step 7: loss NaN and gradient norm NaN: ",
                                  "model.layers.0.self_attn.q_proj", "in microbatch 1 on rank 0"});
}

TEST_F(OneRankTest, AFaultThatDoesNotComeAgainIsOfTheMachine) {
  fill_random();
  set_batches({{1, 2, 3, 4}, {3, 5, 1, 2}});
  gradients.flat().fill_(1);
  expect_says(said_of(INFINITY, 3.5),
              {"loss inf and gradient norm 3.5: run once more, the step is finite", "memory"});
  // The loss was finite, so gradients are looked at; those of a later step are computed once more.
  gradients.flat().fill_(NAN);
  expect_says(said_of(3.5, NAN), {"going backward the first gradient that is not is that of lm_head"
                                  ".weight with NaN on rank 0"});
  expect_says(said_of(3.5, NAN, /*overwritten=*/true), {"run once more, the step is finite"});
}

// Attention's output and the stream's gradient are so large that their product overflows, in the
// gradient of o_proj alone: what goes on backward is small, for o_proj is.
TEST_F(OneRankTest, AGradientThatOverflowsIsFoundInTheStepRunOnceMore) {
  fill_random();
  set_batches({{1, 2, 3, 4}, {3, 5, 1, 2}});
  value(kLayer1 + "self_attn.v_proj.weight").mul_(1e36);
  value(kLayer1 + "self_attn.o_proj.weight").mul_(1e-37);
  value("lm_head.weight").mul_(1e6);
  gradients.flat().zero_();
  expect_says(said_of(3.5, INFINITY, /*overwritten=*/true),
              {"the forward pass is finite", kLayer1 + "self_attn.o_proj.weight with "});
}

// ---------------------------------------------------------------------------- gradients

// Plants NaN in the gradient of one parameter of one rank at step 2.
TrainObserver changing_gradient(const std::string& name, int rank) {
  TrainObserver observer;
  observer.after_backward = [=](const StepView& view) {
    if (view.step != 2 || rank != view.mesh.global_rank) return;
    for (const Parameter& parameter : view.model.parameters().list())
      if (parameter.name == name) parameter.gradient.fill_(NAN);
  };
  return observer;
}

TEST_P(TwoRanksTest, AGradientIsNamedWithTheRankThatHoldsItsSum) {
  const std::string name = kLayer1 + "mlp.down_proj.weight";
  const std::string sentence = said(layout(), changing_gradient(name, /*rank=*/1));
  const bool summed = GetParam().distributed.dp_size * GetParam().distributed.cp_size > 1;
  expect_says(sentence, {"step 2: loss ", " and gradient norm NaN: ", "the forward pass is finite",
                         name + (summed ? ", summed over dp×cp, with" : " with") + " NaN on " +
                             GetParam().rank_1,
                         "training.grad_clip 1.0"});
}

TEST(NotFiniteTest, TheFirstGradientGoingBackwardIsNamed) {
  TrainObserver observer = changing_gradient(kLayer1 + "mlp.up_proj.weight", 0);
  observer.after_backward = [&, last = observer.after_backward](const StepView& view) {
    last(view);
    changing_gradient("model.layers.0.mlp.down_proj.weight", 0).after_backward(view);
    changing_gradient("model.embed_tokens.weight", 0).after_backward(view);
  };
  expect_says(said({}, observer),
              {"that of " + kLayer1 + "mlp.up_proj.weight with NaN on rank 0;"});
}

TEST(NotFiniteTest, UnderZero1TheOwnerOfTheSumNamesIt) {
  // Of two ranks the second owns what lies behind.
  const std::string sentence =
      said({.distributed = {.dp_size = 2}}, changing_gradient("lm_head.weight", /*rank=*/1));
  expect_says(sentence, {"lm_head.weight, summed over dp×cp, with NaN on rank 1 (dp 1)"});
}

// Of each rank, the weights before the step that went wrong are those after it.
void expect_unchanged(const Layout& layout, TrainObserver observer,
                      const std::vector<std::string>& says) {
  std::vector<at::Tensor> before(2), after(2);
  observer.after_update = [&, change = observer.after_update](const StepView& view) {
    if (change) change(view);
    (view.step == 1 ? before : after).at(static_cast<size_t>(view.mesh.global_rank)) =
        view.model.parameters().flat().clone();
  };
  expect_says(said(layout, observer), says);
  for (size_t rank = 0; rank < 2; ++rank) EXPECT_TRUE(before[rank].equal(after[rank])) << rank;
}

TEST_P(TwoRanksTest, TheWeightsStayAsTheyWere) {
  expect_unchanged(layout(), changing_gradient(kLayer1 + "mlp.down_proj.weight", /*rank=*/1),
                   {"step 2: loss ", "gradient norm NaN"});
}

// The target's logit is −∞ and its loss infinite; the gradient, softmax − 1, is finite.
TEST_P(TwoRanksTest, NorDoesALossAloneChangeThem) {
  const Change change = [](const Parameters& parameters) {
    const auto weight = [&](const std::string& name) {
      return value_of(parameters, name + ".weight");
    };
    if (const at::Tensor embedding = weight("model.embed_tokens"); embedding.defined()) {
      embedding.fill_(1);
      embedding.select(1, 0).fill_(10);
    }
    if (const at::Tensor head = weight("lm_head"); head.defined()) {
      weight("model.norm").zero_();
      weight("model.norm")[0] = 1e3;
      head.zero_();
      head[0][0] = -1e35;
    }
  };
  expect_unchanged(layout(), changing_weights(change),
                   {"step 2: loss inf", "wrong first in lm_head, whose output holds infinity"});
}

// ---------------------------------------------------------------------------- replicas

// Flips the lowest bit of one element of a rank.
TrainObserver flipping(const std::string& name, int rank, int64_t step = 1) {
  return changing_weights(
      [=](const Parameters& parameters) {
        const at::Tensor value = value_of(parameters, name).view({-1});
        auto* bytes = static_cast<uint8_t*>(value.data_ptr());
        bytes[value.element_size() * (value.numel() / 2)] ^= 1;
      },
      rank, step);
}

TEST(ReplicaCheckTest, AgreeInEveryLayoutAndStep) {
  Distributed all{.tp_size = 2, .cp_size = 2, .pp_size = 2, .dp_size = 2};
  all.sequence_parallel = true;
  const std::vector<Layout> layouts = {
      {.distributed = {}},
      {.distributed = {.dp_size = 2, .zero_stage = 0}},
      {.distributed = {.tp_size = 4}, .key_value_heads = 2},
      {.distributed = all, .tied = true, .dtype = DType::bfloat16},
  };
  for (Layout layout : layouts) {
    layout.desync_check = 1;
    EXPECT_EQ(said(layout, {}), "");
  }
}

struct Replicas {
  const char* name;
  Layout layout;
  std::string parameter;
  int rank;
  std::string says;
};

void PrintTo(const Replicas& replicas, std::ostream* out) {
  *out << replicas.name;
}

class ReplicasTest : public ::testing::TestWithParam<Replicas> {};

TEST_P(ReplicasTest, OneBitThatDiffersIsNamed) {
  Layout layout = GetParam().layout;
  EXPECT_EQ(said(layout, flipping(GetParam().parameter, GetParam().rank)), "") << "without a check";
  layout.desync_check = 1;
  expect_says(said(layout, flipping(GetParam().parameter, GetParam().rank)),
              {"step 2: " + GetParam().parameter + " has other bits on " + GetParam().says + ", so",
               "checkpoint of step 1 or before"});
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, ReplicasTest,
    ::testing::Values(Replicas{"Dp2",
                               {.distributed = {.dp_size = 2}},
                               kLayer1 + "mlp.up_proj.weight",
                               1,
                               "rank 1 (dp 1) than on rank 0 (dp 0)"},
                      Replicas{"Dp3TheMajorityIsRight",
                               {.distributed = {.dp_size = 3}},
                               "lm_head.weight",
                               0,
                               "rank 0 (dp 0) than on ranks 1 and 2"},
                      Replicas{"Cp2BFloat16",
                               {.distributed = {.cp_size = 2}, .dtype = DType::bfloat16},
                               kLayer1 + "self_attn.k_proj.bias",
                               0,
                               "rank 1 (cp 1) than on rank 0 (cp 0)"},
                      Replicas{"Pp2Dp2SecondStage",
                               {.distributed = {.pp_size = 2, .dp_size = 2}},
                               "model.norm.weight",
                               3,
                               "rank 3 (dp 1, pp 1) than on rank 1 (dp 0, pp 1)"},
                      Replicas{"Tp2Norm",
                               {.distributed = {.tp_size = 2}},
                               kLayer1 + "input_layernorm.weight",
                               1,
                               "rank 1 (tp 1) than on rank 0 (tp 0)"},
                      Replicas{"Tp4SharedHead",
                               {.distributed = {.tp_size = 4}, .key_value_heads = 2},
                               kLayer1 + "self_attn.v_proj.weight",
                               3,
                               "rank 3 (tp 3) than on rank 2 (tp 2)"},
                      Replicas{"Pp2Tied",
                               {.distributed = {.pp_size = 2}, .tied = true},
                               "model.embed_tokens.weight",
                               1,
                               "rank 1 (pp 1) than on rank 0 (pp 0)"}),
    [](const auto& test) { return test.param.name; });

TEST(ReplicaCheckTest, AreComparedAtTheIntervalAndTheLastGoodStepIsSaid) {
  // Each replica keeps what it has, until the check.
  const Layout layout{
      .distributed = {.dp_size = 2, .zero_stage = 0}, .desync_check = 3, .steps = 7};
  const std::string name = kLayer1 + "mlp.up_proj.weight";
  expect_says(said(layout, flipping(name, 1, /*step=*/1)), {"step 3: ", "an older checkpoint"});
  expect_says(said(layout, flipping(name, 1, /*step=*/3)),
              {"step 6: ", "a checkpoint of step 3 or before"});
  EXPECT_EQ(said(layout, flipping(name, 1, /*step=*/6)), "");
}

TEST(ReplicaCheckTest, HowManyParametersDifferIsSaid) {
  const auto change = filling({{"model.norm", 2}, {"lm_head", 1}, {kLayer1 + "mlp.up_proj", 1}});
  expect_says(said({.distributed = {.dp_size = 2}, .desync_check = 2}, changing_weights(change, 1)),
              {kLayer1 + "mlp.up_proj.weight", "rank 0 (dp 0), and so have 2 more parameters"});
}

// ---------------------------------------------------------------------------- loss spikes

// Deterministic noise in [−1, 1].
double noise(int64_t step) {
  return std::fmod(std::abs(std::sin(static_cast<double>(step) * 12.9898) * 43758.5453), 1.0) * 2 -
         1;
}

TEST(LossSpikeTest, NoiseAndAFallingCurveAreNone) {
  LossHistory history;
  for (int64_t step = 0; step < 2000; ++step) {
    const double curve = 2 + 6 * std::exp(-static_cast<double>(step) / 200);
    EXPECT_FALSE(note_loss(history, curve + 0.1 * noise(step))) << step;
  }
}

TEST(LossSpikeTest, MeanAndVarianceAreThoseOfTheLosses) {
  LossHistory history;
  for (const double loss : {1.0, 2.0, 6.0}) note_loss(history, loss);
  EXPECT_EQ(history.steps, 3);
  EXPECT_DOUBLE_EQ(history.mean, 3);
  EXPECT_DOUBLE_EQ(history.variance, 14.0 / 3);
}

TEST(LossSpikeTest, AJumpIsMarkedAfterTwentySteps) {
  for (const int64_t steps : {19, 20, 200}) {
    LossHistory history;
    for (int64_t step = 0; step < steps; ++step) note_loss(history, 2 + 0.02 * noise(step));
    EXPECT_EQ(note_loss(history, 3), steps >= 20) << steps;
    EXPECT_FALSE(note_loss(history, 2)) << "the next one is as before";
    EXPECT_FALSE(note_loss(history, 1)) << "a fall is none";
  }
}

TEST(LossSpikeTest, BothRulesMustHold) {
  LossHistory quiet, loud;
  for (int64_t step = 0; step < 100; ++step) {
    note_loss(quiet, 2 + 0.001 * noise(step));
    note_loss(loud, 2 + noise(step));
  }
  EXPECT_FALSE(note_loss(quiet, 2.1)) << "far beyond six deviations, but within a tenth";
  EXPECT_TRUE(note_loss(quiet, 2.3));
  EXPECT_FALSE(note_loss(loud, 4)) << "twice the mean, but within six deviations";
}

TEST(LossSpikeTest, ALossThatStaysHighBecomesTheUsualOne) {
  LossHistory history;
  for (int64_t step = 0; step < 100; ++step) note_loss(history, 2 + 0.05 * noise(step));
  int64_t marked = 0;
  for (int64_t step = 0; step < 100; ++step) marked += note_loss(history, 10) ? 1 : 0;
  EXPECT_GE(marked, 5);
  EXPECT_LE(marked, 20);
}

TEST(LossSpikeTest, ARunMarksItsSteps) {
  std::map<int64_t, bool> marks;
  TrainObserver observer = changing_weights(
      [](const Parameters& parameters) { value_of(parameters, "lm_head.weight").mul_(20); },
      kEveryRank, /*step=*/24);
  observer.after_reading = [&](const StepMetrics& metrics) {
    marks[metrics.step] = metrics.loss_spike;
  };
  EXPECT_EQ(said({.distributed = {}, .steps = 25}, observer), "");
  for (const auto& [step, marked] : marks) EXPECT_EQ(marked, step == 25) << step;
}

}  // namespace
}  // namespace picotron
