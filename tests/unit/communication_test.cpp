// The formulas of train/communication.h against what ranks have sent, to the byte. Every layout is
// trained for two steps as threads; the record counts.
#include "train/communication.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dist/launch.h"
#include "train/layout.h"
#include "train/plan.h"
#include "train/verify.h"

namespace picotron {
namespace {

struct Case {
  const char* name;
  Distributed layout;
  LlamaConfig model = {};
  Training training = {};
  DType dtype = DType::float64;
};

void PrintTo(const Case& tried, std::ostream* out) {
  *out << tried.name;
}

// Uneven everywhere: vocabulary 37, inner 29.
LlamaConfig small() {
  return {.name = "small",
          .vocab_size = 37,
          .hidden_size = 24,
          .intermediate_size = 29,
          .num_hidden_layers = 4,
          .num_attention_heads = 4,
          .num_key_value_heads = 4,
          .head_dim = 4,
          .max_position_embeddings = 24};
}

LlamaConfig with(const std::function<void(LlamaConfig&)>& change) {
  LlamaConfig model = small();
  change(model);
  return model;
}
LlamaConfig tied() {
  return with([](LlamaConfig& m) { m.tie_word_embeddings = true; });
}
LlamaConfig one_key_value_head() {
  return with([](LlamaConfig& m) { m.num_key_value_heads = 1; });
}
LlamaConfig biased() {
  return with([](LlamaConfig& m) {
    m.attention_bias = m.mlp_bias = true;
    m.num_key_value_heads = 2;
  });
}

Training steps(int64_t microbatches, Recompute recompute = Recompute::none) {
  return {.seq_length = 24,
          .micro_batch_size = 2,
          .gradient_accumulation_steps = microbatches,
          .recompute = recompute};
}

std::vector<Case> cases() {
  using enum PpEngine;
  return {
      {"one rank", {}, small(), steps(2)},
      {"dp 2", {.dp_size = 2}, small(), steps(1)},
      {"dp 3, zero 0", {.dp_size = 3, .zero_stage = 0}, tied(), steps(2)},
      {"dp 2 bf16", {.dp_size = 2}, tied(), steps(7), DType::bfloat16},
      {"tp 2", {.tp_size = 2}, small(), steps(1)},
      {"tp 4 bf16", {.tp_size = 4}, small(), steps(2), DType::bfloat16},
      {"tp 4, one key/value head", {.tp_size = 4}, one_key_value_head(), steps(2)},
      {"tp 4, biases, shared heads, cut tokens",
       {.tp_size = 4, .sequence_parallel = true},
       biased(),
       steps(1)},
      {"tp 2, cut tokens bf16",
       {.tp_size = 2, .sequence_parallel = true},
       tied(),
       steps(7),
       DType::bfloat16},
      {"tp 2, recompute full", {.tp_size = 2}, small(), steps(2, Recompute::full)},
      {"tp 2, cut tokens, recompute full",
       {.tp_size = 2, .sequence_parallel = true},
       small(),
       steps(2, Recompute::full)},
      {"cp 2", {.cp_size = 2}, small(), steps(1)},
      {"cp 3, recompute selective bf16",
       {.cp_size = 3},
       one_key_value_head(),
       steps(2, Recompute::selective),
       DType::bfloat16},
      {"cp 2, recompute full", {.cp_size = 2}, small(), steps(2, Recompute::full)},
      {"pp 2", {.pp_size = 2}, small(), steps(7)},
      {"pp 4, afab, tied", {.pp_size = 4, .pp_engine = afab}, tied(), steps(2)},
      {"pp 2, 2 chunks, tied bf16",
       {.pp_size = 2, .pp_engine = interleaved, .pp_chunks = 2},
       tied(),
       steps(7),
       DType::bfloat16},
      {"pp 3, zb-h1, recompute full",
       {.pp_size = 3, .pp_engine = zb_h1},
       small(),
       steps(7, Recompute::full)},
      {"dp 2, tp 2, pp 2", {.tp_size = 2, .pp_size = 2, .dp_size = 2}, tied(), steps(2)},
      {"tp 2, pp 2, cut tokens, chunks",
       {.tp_size = 2,
        .pp_size = 2,
        .pp_engine = interleaved,
        .sequence_parallel = true,
        .pp_chunks = 2},
       biased(),
       steps(1)},
      {"tp 2, cp 2, cut tokens bf16",
       {.tp_size = 2, .cp_size = 2, .sequence_parallel = true},
       one_key_value_head(),
       steps(2),
       DType::bfloat16},
      {"dp 2, cp 2, zero 0", {.cp_size = 2, .dp_size = 2, .zero_stage = 0}, small(), steps(1)},
      {"all four, cut tokens, selective",
       {.tp_size = 2,
        .cp_size = 2,
        .pp_size = 2,
        .dp_size = 2,
        .pp_engine = zb_h1,
        .sequence_parallel = true},
       tied(),
       steps(7, Recompute::selective)},
  };
}

class CommunicationTest : public testing::TestWithParam<Case> {};

TEST_P(CommunicationTest, FormulasAreWhatTheRecordCounts) {
  const Case& tried = GetParam();
  ShrunkRun run;
  run.architecture = tried.model;
  run.config.distributed = tried.layout;
  run.config.distributed.use_cpu = true;
  run.config.training = tried.training;
  run.config.training.total_train_steps = 2;
  run.config.training.num_samples.reset();
  run.config.model.dtype = tried.dtype;
  const picotron::Run rehearsal = rehearse(run);
  const int world = static_cast<int>(world_size(run.config));

  std::vector<record::Bytes> counted;  // of each step, as metrics.jsonl has them
  const int code =
      launch({.world_size = world, .ranks = Ranks::threads, .threads_per_rank = 1, .argv = {}},
             [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
               const auto device = open_device({.use_cpu = true, .local_rank = local_rank});
               TrainObserver observer;
               if (rendezvous.global_rank == 0)
                 observer.after_reading = [&](const StepMetrics& m) { counted.push_back(m.bytes); };
               train(rehearsal, rendezvous, *device, observer);
               return 0;
             });
  ASSERT_EQ(code, 0);
  ASSERT_EQ(counted.size(), 2U);

  const Plan plan = make_plan(run.config, tried.model, tried.dtype);
  const record::Bytes expected = sum_of(plan.volumes);
  for (const record::Bytes& step : counted) {
    for (size_t axis = 0; axis < expected.size(); ++axis)
      EXPECT_EQ(step[axis], expected[axis]) << record::name_of(static_cast<record::Axis>(axis));
  }
}

std::string name_of_case(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.name;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}
INSTANTIATE_TEST_SUITE_P(Layouts, CommunicationTest, testing::ValuesIn(cases()), name_of_case);

}  // namespace
}  // namespace picotron
