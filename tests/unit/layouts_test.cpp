// One curve: in every layout each loss, norm, gradient and updated weight is that of one rank. In
// float64 to 1e-10, three steps, with SGD and with AdamW; in float32 over twenty steps to 1e-5
// (loss) and 1e-4 (norm, the first step's gradients). Ranks are threads;
// tests/parity/test_layouts.py tries some as processes.
//
// A table of all is printed at the end of `./run test`. The quick set covers each feature once;
// suites named Slow (./run test --all) hold the rest, up to 16 ranks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "core/error.h"
#include "train/verify.h"

namespace picotron {
namespace {

struct Layout {
  std::string name;
  Distributed distributed = {};
  Recompute recompute = Recompute::none;
  int64_t microbatches = 2;
  // Of the model before it is shrunk.
  int64_t layers = 4, heads = 8, key_value_heads = 4, inner = 64, vocab = 64;
  bool tied = false, biases = false;
  double grad_clip = 0;
  bool document_masking = false;
};

void PrintTo(const Layout& layout, std::ostream* out) {
  *out << layout.name;
}

ShrunkRun shrunk(const Layout& layout, DType dtype, OptimizerKind optimizer) {
  Config config;
  config.distributed = layout.distributed;
  config.training.recompute = layout.recompute;
  config.training.micro_batch_size = 2;
  config.training.gradient_accumulation_steps = layout.microbatches;
  config.training.grad_clip = layout.grad_clip;
  config.dataset.document_masking = layout.document_masking;
  const LlamaConfig model{.name = "test",
                          .vocab_size = layout.vocab,
                          .hidden_size = 64,
                          .intermediate_size = layout.inner,
                          .num_hidden_layers = layout.layers,
                          .num_attention_heads = layout.heads,
                          .num_key_value_heads = layout.key_value_heads,
                          .head_dim = 8,
                          .rms_norm_eps = 1e-5,
                          .tie_word_embeddings = layout.tied,
                          .attention_bias = layout.biases,
                          .mlp_bias = layout.biases};
  return shrink(config, model, dtype, optimizer);
}

// The worst of each figure of a layout, for the table.
std::map<std::string, std::string>& table() {
  static std::map<std::string, std::string> rows;
  return rows;
}

// To the terminal, and to the file that `./run test` collects from all processes and prints.
class PrintsTable : public ::testing::Environment {
 public:
  void TearDown() override {
    if (table().empty()) return;
    std::string rows;
    for (const auto& [name, row] : table()) rows += fmt::format("{:<48} {}\n", name, row);
    fmt::print("\n{:<48} {:>8} {:>8} {:>8} {:>8}\n{}", "distance from one rank", "loss", "norm",
               "gradient", "weight", rows);
    if (const char* file = std::getenv("PICOTRON_LAYOUT_TABLE"))
      std::ofstream(file, std::ios::app) << rows << std::flush;
  }
};
[[maybe_unused]] const auto* const kTable =
    ::testing::AddGlobalTestEnvironment(new PrintsTable);  // owned by GoogleTest

void expect_one_curve(const Layout& layout, DType dtype, OptimizerKind optimizer) {
  const ShrunkRun run = shrunk(layout, dtype, optimizer);
  const Distances d = distances(trace_as_threads(run), trace_as_threads(on_one_rank(run)));
  table()[fmt::format("{}, {} {}", layout.name, to_string(dtype), to_string(optimizer))] =
      fmt::format("{:8.1e} {:8.1e} {:8.1e} {:8.1e}", d.loss, d.grad_norm, d.gradient.distance,
                  d.weight.distance);
  const Tolerance t = tolerance_of(dtype);
  EXPECT_LE(d.initial.distance, t.initial) << d.initial.name;
  EXPECT_LE(d.loss, t.loss);
  EXPECT_LE(d.grad_norm, t.grad_norm);
  EXPECT_LE(d.gradient.distance, t.gradients) << d.gradient.name;
  EXPECT_LE(d.weight.distance, t.weights) << d.weight.name;
}

Distributed axes(int64_t dp, int64_t tp, int64_t pp, int64_t cp) {
  return {.tp_size = tp, .cp_size = cp, .pp_size = pp, .dp_size = dp};
}

std::vector<Layout> quick_layouts() {
  std::vector<Layout> all;
  const auto add = [&](Layout layout) { all.push_back(std::move(layout)); };
  add({.name = "Dp2Zero1", .distributed = axes(2, 1, 1, 1)});
  add({.name = "Tp2UnevenTied",
       .distributed = axes(1, 2, 1, 1),
       .inner = 65,
       .vocab = 67,
       .tied = true});
  add({.name = "Tp4TwoKeyValueHeads",
       .distributed = axes(1, 4, 1, 1),
       .key_value_heads = 2,
       .biases = true,
       .grad_clip = 0.1});
  add({.name = "Cp2", .distributed = axes(1, 1, 1, 2)});
  add({.name = "Pp2Tied", .distributed = axes(1, 1, 2, 1), .tied = true});
  Layout interleaved{.name = "Pp2Interleaved", .distributed = axes(1, 1, 2, 1), .layers = 7};
  interleaved.distributed.pp_engine = PpEngine::interleaved;
  interleaved.distributed.pp_chunks = 2;
  interleaved.microbatches = 3;
  add(interleaved);
  Layout zero_bubble{.name = "Tp2Pp2ZeroBubble", .distributed = axes(1, 2, 2, 1), .tied = true};
  zero_bubble.distributed.pp_engine = PpEngine::zb_h1;
  add(zero_bubble);
  Layout sequence{.name = "Dp2Tp2SequenceParallel",
                  .distributed = axes(2, 2, 1, 1),
                  .recompute = Recompute::full,
                  .biases = true};
  sequence.distributed.sequence_parallel = true;
  add(sequence);
  Layout all_four{.name = "Dp2Tp2Pp2Cp2",
                  .distributed = axes(2, 2, 2, 2),
                  .recompute = Recompute::selective,
                  .tied = true,
                  .grad_clip = 0.1};
  all_four.distributed.sequence_parallel = true;
  add(all_four);
  all_four.name += "DocumentMasking";
  all_four.document_masking = true;
  add(all_four);
  add({.name = "Cp3DocumentMasking", .distributed = axes(1, 1, 1, 3), .document_masking = true});
  return all;
}

// Every axis at 2, 3 and 4; all pairs; all triples; with each engine, chunks, options.
std::vector<Layout> all_layouts() {
  std::vector<Layout> all;
  const auto named = [&](const std::string& name, const Distributed& d, const auto& change) {
    Layout layout{.name = name, .distributed = d};
    change(layout);
    all.push_back(layout);
  };
  const auto plain = [](Layout&) {};
  for (const int64_t n : {2, 3, 4}) {
    const std::string size = std::to_string(n);
    named("Dp" + size, axes(n, 1, 1, 1), plain);
    named("Tp" + size, axes(1, n, 1, 1),
          [&](Layout& l) { l.heads = 2 * n, l.key_value_heads = n; });
    named("Pp" + size, axes(1, 1, n, 1), plain);
    named("Cp" + size, axes(1, 1, 1, n), plain);
  }
  named("Dp2Tp2", axes(2, 2, 1, 1), plain);
  named("Dp3Pp2", axes(3, 1, 2, 1), plain);
  named("Dp2Cp3", axes(2, 1, 1, 3), plain);
  named("Tp2Pp3", axes(1, 2, 3, 1), [](Layout& l) { l.layers = 5; });
  named("Tp2Cp2", axes(1, 2, 1, 2), plain);
  named("Pp2Cp2", axes(1, 1, 2, 2), [](Layout& l) { l.tied = true; });
  named("Dp2Tp2Pp2", axes(2, 2, 2, 1), [](Layout& l) { l.tied = true; });
  named("Dp2Tp2Cp2", axes(2, 2, 1, 2), plain);
  named("Dp2Pp2Cp2", axes(2, 1, 2, 2), plain);
  named("Tp2Pp2Cp2", axes(1, 2, 2, 2), plain);
  named("Dp2Tp2Pp2Cp2", axes(2, 2, 2, 2), plain);
  for (const PpEngine engine : {PpEngine::afab, PpEngine::zb_h1, PpEngine::interleaved}) {
    const std::string name = engine == PpEngine::afab    ? "Afab"
                             : engine == PpEngine::zb_h1 ? "ZeroBubble"
                                                         : "Interleaved";
    for (const int64_t microbatches : {1, 7}) {
      named(fmt::format("Pp3{}{}", name, microbatches), axes(1, 1, 3, 1), [&](Layout& l) {
        l.distributed.pp_engine = engine;
        l.microbatches = microbatches;
        l.tied = microbatches == 7;
      });
    }
  }
  named("Pp2Interleaved3Chunks", axes(1, 1, 2, 1), [](Layout& l) {
    l.distributed.pp_engine = PpEngine::interleaved;
    l.distributed.pp_chunks = 3;
    l.layers = 9, l.microbatches = 4, l.tied = true;
  });
  named("Dp2Tp2Pp2Interleaved", axes(2, 2, 2, 1), [](Layout& l) {
    l.distributed.pp_engine = PpEngine::interleaved;
    l.distributed.pp_chunks = 2;
    l.distributed.sequence_parallel = true;
    l.microbatches = 5, l.biases = true;
  });
  named("Tp2Pp2Cp2ZeroBubble", axes(1, 2, 2, 2), [](Layout& l) {
    l.distributed.pp_engine = PpEngine::zb_h1;
    l.distributed.sequence_parallel = true;
    l.tied = true, l.recompute = Recompute::selective;
  });
  named("Tp4OneKeyValueHead", axes(1, 4, 1, 1), [](Layout& l) { l.key_value_heads = 1; });
  named("Tp8TwoKeyValueHeads", axes(1, 8, 1, 1), [](Layout& l) { l.key_value_heads = 2; });
  named("Tp4Pp2TwoKeyValueHeadsSequence", axes(1, 4, 2, 1), [](Layout& l) {
    l.key_value_heads = 2;
    l.distributed.sequence_parallel = true, l.biases = true;
  });
  named("Tp3Uneven", axes(1, 3, 1, 1), [](Layout& l) {
    l.heads = 6, l.key_value_heads = 3, l.inner = 65, l.vocab = 68, l.biases = true;
  });
  named("Pp3UnevenLayersFlops", axes(1, 1, 3, 1),
        [](Layout& l) { l.layers = 8, l.distributed.balance = Balance::flops, l.tied = true; });
  named("Dp2Zero0", axes(2, 1, 1, 1), [](Layout& l) { l.distributed.zero_stage = 0; });
  named("Dp2Pp2TiedZero0", axes(2, 1, 2, 1),
        [](Layout& l) { l.distributed.zero_stage = 0, l.tied = true; });
  named("RecomputeFull", axes(1, 1, 1, 1), [](Layout& l) { l.recompute = Recompute::full; });
  named("Cp2RecomputeSelective", axes(1, 1, 1, 2),
        [](Layout& l) { l.recompute = Recompute::selective; });
  named("Tp2Pp2RecomputeFull", axes(1, 2, 2, 1),
        [](Layout& l) { l.recompute = Recompute::full, l.distributed.sequence_parallel = true; });
  named("Dp2Tp2Pp2PipelineOutermost", axes(2, 2, 2, 1),
        [](Layout& l) { l.distributed.mesh_order = "pp-dp-cp-tp", l.tied = true; });
  named("Dp2Tp2Cp2ReversedOrder", axes(2, 2, 1, 2),
        [](Layout& l) { l.distributed.mesh_order = "tp-cp-pp-dp"; });
  for (const int64_t n : {2, 3, 4}) {
    const auto masked = [](Layout& l) { l.document_masking = true; };
    named(fmt::format("Dp{}DocumentMasking", n), axes(n, 1, 1, 1), masked);
    named(fmt::format("Tp{}DocumentMasking", n), axes(1, n, 1, 1),
          [&](Layout& l) { l.heads = 2 * n, l.key_value_heads = n, l.document_masking = true; });
    named(fmt::format("Pp{}DocumentMasking", n), axes(1, 1, n, 1), masked);
    named(fmt::format("Cp{}DocumentMaskingRecompute", n), axes(1, 1, 1, n),
          [](Layout& l) { l.document_masking = true, l.recompute = Recompute::selective; });
  }
  named("Dp4Tp2Pp2", axes(4, 2, 2, 1), [](Layout& l) { l.tied = true; });
  named("Dp2Tp2Pp4", axes(2, 2, 4, 1), [](Layout& l) { l.microbatches = 7; });
  named("Tp4Cp4", axes(1, 4, 1, 4), plain);
  return all;
}

const auto name_of_case = [](const auto& test) { return test.param.name; };

class LayoutTest : public ::testing::TestWithParam<Layout> {};

TEST_P(LayoutTest, TrainsTheModelOfOneRank) {
  expect_one_curve(GetParam(), DType::float64, OptimizerKind::adamw);
  expect_one_curve(GetParam(), DType::float64, OptimizerKind::sgd);
  expect_one_curve(GetParam(), DType::float32, OptimizerKind::adamw);
}

INSTANTIATE_TEST_SUITE_P(Quick, LayoutTest, ::testing::ValuesIn(quick_layouts()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Slow, LayoutTest, ::testing::ValuesIn(all_layouts()), name_of_case);

// bf16 rounds every product: loss and norm of twenty steps within 2e-2.
class BFloat16LayoutTest : public ::testing::TestWithParam<Layout> {};

TEST_P(BFloat16LayoutTest, StaysNearOneRank) {
  expect_one_curve(GetParam(), DType::bfloat16, OptimizerKind::adamw);
}

INSTANTIATE_TEST_SUITE_P(Quick, BFloat16LayoutTest, ::testing::ValuesIn(quick_layouts()),
                         name_of_case);

}  // namespace
}  // namespace picotron
