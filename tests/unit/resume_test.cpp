// A run that stops and goes on is the run that never stopped: in its own layout to the last bit, in
// another one on the same curve, and a checkpoint that is read and written again is the same bytes.
// The quick suites stop once and take each pair of layouts in one precision; those named Slow
// (./run test --all) stop at more steps, in more pairs and in every precision.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "dist/launch.h"
#include "train/layout.h"
#include "train/state.h"
#include "train/train.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Layout {
  std::string name;
  Distributed distributed = {};
};

Distributed axes(int64_t dp, int64_t tp, int64_t pp, int64_t cp, int64_t zero_stage = 1) {
  Distributed d{.tp_size = tp, .cp_size = cp, .pp_size = pp, .dp_size = dp};
  d.zero_stage = zero_stage;
  return d;
}

// Two chunks on each of two stages.
Distributed chunked(int64_t dp, int64_t tp, int64_t zero_stage) {
  Distributed d = axes(dp, tp, 2, 1, zero_stage);
  d.pp_engine = PpEngine::interleaved;
  d.pp_chunks = 2;
  return d;
}

Distributed with_sequence_parallel(Distributed d) {
  d.sequence_parallel = true;
  return d;
}

// Nothing divides evenly, and the data begin anew within thirty steps.
Config config_of(const Distributed& distributed, DType dtype, bool tied, const fs::path& save_dir) {
  Config config;
  config.distributed = distributed;
  config.distributed.use_cpu = true;
  config.distributed.backend = Backend::gloo;
  config.model.name.reset();
  config.model.dtype = dtype;
  config.model.vocab_size = 477;
  config.model.hidden_size = 32;
  config.model.intermediate_size = 50;
  config.model.num_hidden_layers = 5;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 2;
  config.model.tie_word_embeddings = tied;
  config.training.seq_length = 16;
  config.training.num_samples = 100;
  config.training.micro_batch_size = 1;
  config.training.global_batch_size = 4;
  config.training.total_train_steps = 30;
  config.training.learning_rate = 1e-3;
  config.training.adam_eps = 1e-4;  // with a smaller one tiny gradients amplify rounding
  config.training.lr_schedule = LrSchedule::cosine;
  config.training.warmup_steps = 4;
  config.training.grad_clip = 1;
  config.dataset.shuffle = true;
  config.checkpoint.save_dir = save_dir.string();
  config.checkpoint.save_frequency = 30;
  return config;
}

// A run that ends after `steps`, and saves then; its schedule is that of all thirty.
Config until(Config config, int64_t steps) {
  config.training.max_tokens = steps * tokens_per_step(config);
  return config;
}

Run opened(const Config& config) {
  Run run = prepare_run(config, /*on_gpu=*/false);
  run.dtype = scalar_type_of(*config.model.dtype);  // bfloat16 where the CPU is slow at it too
  return run;
}

void on_ranks(const Run& run, const std::function<void(const Rendezvous&, const Device&)>& body) {
  const int code = launch({.world_size = static_cast<int>(world_size(run.config)),
                           .ranks = Ranks::threads,
                           .threads_per_rank = 1,
                           .argv = {}},
                          [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
                            const auto device =
                                open_device({.use_cpu = true, .local_rank = local_rank});
                            body(rendezvous, *device);
                            return 0;
                          });
  ASSERT_EQ(code, 0) << "a rank failed";
}

void train_ranks(const Config& config) {
  const Run run = opened(config);
  on_ranks(run, [&](const Rendezvous& rendezvous, const Device& device) {
    train(run, rendezvous, device);
  });
}

// Reads the checkpoint that the run starts from, and writes it again.
void write_again(const Run& run) {
  on_ranks(run, [&](const Rendezvous& rendezvous, const Device& device) {
    const at::NoGradGuard no_grad;
    const Mesh mesh =
        make_mesh(axis_sizes(run.config), rendezvous, mesh_options(run.config, run.architecture));
    Llama model(run.architecture, mesh, llama_options(run, mesh.my.pp, device.torch()));
    Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world,
                        {.zero_stage = static_cast<int>(run.config.distributed.zero_stage)});
    fill_first_values(run, model, gradients.flat());
    model.parameters().flat().copy_(gradients.flat());
    ShardedOptimizer optimizer(model.parameters(), gradients, gradients.flat(), run.config.training,
                               Body::plain);
    const TrainState state = begin(run, gradients, model, optimizer);
    const auto saver = make_saver(run, rendezvous, gradients, model, optimizer);
    saver->save(describe_state(run, state));
    saver->finish();
  });
}

// The lines of metrics.jsonl without what a clock has measured.
std::vector<json> metrics_of(const fs::path& save_dir) {
  std::vector<json> lines;
  std::ifstream file(save_dir / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    json step = json::parse(line);
    for (const char* key :
         {"tokens_per_second", "tokens_per_second_per_gpu", "mfu", "memory_bytes", "step_seconds"})
      step.erase(key);
    lines.push_back(step);
  }
  return lines;
}

// Every file of a checkpoint with its checksum, a line each.
std::string files_of(const fs::path& checkpoint) {
  std::string text;
  const CheckpointState state = read_state(checkpoint);
  EXPECT_EQ(find_damage(checkpoint, state), std::nullopt);
  for (const auto& [path, record] : state.files) text += path + " " + record.checksum + "\n";
  return text;
}

class ResumeTest : public ::testing::Test {
 protected:
  fs::path folder(const std::string& name) const { return root_ / name; }
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("picotron-resume-{}", ::getpid());
    fs::remove_all(root_);
    ::testing::internal::CaptureStdout();  // the step lines
  }
  void TearDown() override {
    ::testing::internal::GetCapturedStdout();
    fs::remove_all(root_);
  }

 private:
  fs::path root_;
};

// ------------------------------------------------------------------------- in its own layout

struct Stopped {
  Layout layout;
  std::vector<int64_t> after;  // these steps, one run each
};

void PrintTo(const Stopped& stopped, std::ostream* out) {
  *out << stopped.layout.name;
}

class ResumeInPlaceTest : public ResumeTest, public ::testing::WithParamInterface<Stopped> {
 protected:
  void expect_same_run(DType dtype, bool tied) {
    const Distributed& distributed = GetParam().layout.distributed;
    const Config whole = config_of(distributed, dtype, tied, folder("whole"));
    train_ranks(whole);
    const std::vector<json> expected = metrics_of(folder("whole"));
    ASSERT_EQ(expected.size(), 30U);
    for (const int64_t stop : GetParam().after) {
      const fs::path save_dir = folder(fmt::format("stopped-{}", stop));
      Config config = config_of(distributed, dtype, tied, save_dir);
      // A thread that saves while training goes on saves what training had.
      config.checkpoint.async = dtype == DType::bfloat16;
      config.checkpoint.save_frequency = config.checkpoint.async ? 6 : 30;
      train_ranks(until(config, stop));
      ASSERT_TRUE(fs::exists(save_dir / std::to_string(stop) / "state.json"));
      config.checkpoint.resume = Resume::automatic;
      train_ranks(config);
      EXPECT_EQ(metrics_of(save_dir), expected) << "stopped after step " << stop;
      EXPECT_EQ(files_of(save_dir / "30"), files_of(folder("whole") / "30"));
    }
  }
};

TEST_P(ResumeInPlaceTest, Float32IsTheSameToTheLastBit) {
  expect_same_run(DType::float32, /*tied=*/false);
}

TEST_P(ResumeInPlaceTest, BFloat16IsTheSameToTheLastBit) {
  expect_same_run(DType::bfloat16, /*tied=*/true);
}

std::vector<Stopped> five_layouts(const std::vector<int64_t>& after) {
  return {{{"One", axes(1, 1, 1, 1)}, after},
          {{"Dp2", axes(2, 1, 1, 1)}, after},
          {{"Tp2Pp2", axes(1, 2, 2, 1)}, after},
          {{"Dp2Cp2", axes(2, 1, 1, 2)}, after},
          {{"Dp2Pp2ChunksZero0", chunked(2, 1, 0)}, after}};
}

const auto name_of_stopped = [](const auto& test) { return test.param.layout.name; };

INSTANTIATE_TEST_SUITE_P(Quick, ResumeInPlaceTest, ::testing::ValuesIn(five_layouts({13})),
                         name_of_stopped);
INSTANTIATE_TEST_SUITE_P(Slow, ResumeInPlaceTest,
                         ::testing::ValuesIn(five_layouts({1, 2, 8, 21, 28, 29})), name_of_stopped);

// --------------------------------------------------------------------------- in another layout

struct Pair {
  Layout from, to;
  bool every_precision = false;
};

void PrintTo(const Pair& pair, std::ostream* out) {
  *out << pair.from.name << " to " << pair.to.name;
}

std::vector<Layout> layouts() {
  return {{"One", axes(1, 1, 1, 1)},
          {"Dp2", axes(2, 1, 1, 1)},
          {"Tp2Pp2", axes(1, 2, 2, 1)},
          {"Tp4", axes(1, 4, 1, 1)},  // twice as many ranks as key/value heads
          {"Dp2Cp2", axes(2, 1, 1, 2)},
          {"Pp2Chunks", chunked(1, 1, 1)},
          {"Dp4Zero0", axes(4, 1, 1, 1, 0)},
          {"Dp2Tp2Sequence", with_sequence_parallel(axes(2, 2, 1, 1))}};
}

// Each layout to the ones that follow it by these distances, around the list.
std::vector<Pair> pairs(const std::vector<size_t>& distances, bool every_precision) {
  std::vector<Pair> result;
  const std::vector<Layout> all = layouts();
  for (const size_t distance : distances)
    for (size_t i = 0; i < all.size(); ++i)
      result.push_back({all[i], all[(i + distance) % all.size()], every_precision});
  return result;
}

class ResumeElsewhereTest : public ResumeTest, public ::testing::WithParamInterface<Pair> {
 protected:
  void expect_one_curve(DType dtype, bool tied, double tolerance) {
    const Config one = config_of(axes(1, 1, 1, 1), dtype, tied, folder("one"));
    train_ranks(until(one, 6));
    train_ranks(until(config_of(GetParam().from.distributed, dtype, tied, folder("from")), 3));
    Config to = config_of(GetParam().to.distributed, dtype, tied, folder("to"));
    to.checkpoint.load_path = folder("from").string();
    train_ranks(until(to, 6));
    const std::vector<json> expected = metrics_of(folder("one")), seen = metrics_of(folder("to"));
    ASSERT_EQ(expected.size(), 6U);
    ASSERT_EQ(seen.size(), 3U);
    for (size_t i = 0; i < seen.size(); ++i) {
      const json &here = seen[i], &there = expected[i + 3];
      EXPECT_EQ(here["step"], there["step"]);
      EXPECT_EQ(here["trained_tokens"], there["trained_tokens"]);
      EXPECT_EQ(here["learning_rate"], there["learning_rate"]);
      const double loss = there["loss"];
      EXPECT_NEAR(here["loss"].get<double>(), loss, tolerance * loss) << "step " << here["step"];
    }
  }

  // A checkpoint's files, read in the other layout and written again, at the same step.
  void expect_same_files(DType dtype, bool tied) {
    train_ranks(until(config_of(GetParam().from.distributed, dtype, tied, folder("from")), 3));
    Config to = config_of(GetParam().to.distributed, dtype, tied, folder("to"));
    to.checkpoint.load_path = folder("from").string();
    write_again(opened(to));
    EXPECT_EQ(files_of(folder("to") / "3"), files_of(folder("from") / "3"));
  }
};

TEST_P(ResumeElsewhereTest, GoesOnOnTheCurveOfOneRank) {
  expect_one_curve(DType::float64, /*tied=*/true, 1e-10);
  if (GetParam().every_precision) expect_one_curve(DType::float32, /*tied=*/false, 1e-5);
}

TEST_P(ResumeElsewhereTest, WritesTheFilesThatItHasRead) {
  expect_same_files(DType::bfloat16, /*tied=*/true);
  if (GetParam().every_precision) expect_same_files(DType::float32, /*tied=*/false);
}

const auto name_of_pair = [](const auto& test) {
  return test.param.from.name + "To" + test.param.to.name;
};

INSTANTIATE_TEST_SUITE_P(Quick, ResumeElsewhereTest,
                         ::testing::ValuesIn(pairs({3}, /*every_precision=*/false)), name_of_pair);
INSTANTIATE_TEST_SUITE_P(Slow, ResumeElsewhereTest,
                         ::testing::ValuesIn(pairs({1, 2, 3, 4}, /*every_precision=*/true)),
                         name_of_pair);

// ----------------------------------------------------------------------- with another config

class ResumeOtherwiseTest : public ResumeTest {
 protected:
  Config saved_after_3(DType dtype = DType::float32) const {
    return until(config_of(axes(1, 1, 1, 1), dtype, /*tied=*/true, folder("from")), 3);
  }
  Config going_on(DType dtype = DType::float32) const {
    Config config = config_of(axes(1, 1, 1, 1), dtype, /*tied=*/true, folder("to"));
    config.checkpoint.load_path = folder("from").string();
    return until(config, 6);
  }
};

TEST_F(ResumeOtherwiseTest, InAnotherPrecision) {
  for (const auto& [before, after] :
       {std::pair(DType::float32, DType::bfloat16), std::pair(DType::bfloat16, DType::float32)}) {
    fs::remove_all(folder("from").parent_path());
    train_ranks(until(config_of(axes(1, 1, 1, 1), before, true, folder("whole")), 6));
    train_ranks(saved_after_3(before));
    train_ranks(going_on(after));
    const std::vector<json> whole = metrics_of(folder("whole")), seen = metrics_of(folder("to"));
    ASSERT_EQ(seen.size(), 3U);
    for (size_t i = 0; i < seen.size(); ++i) {
      const double loss = whole[i + 3]["loss"];
      EXPECT_NEAR(seen[i]["loss"].get<double>(), loss, 2e-2 * loss);
    }
  }
}

TEST_F(ResumeOtherwiseTest, WithMomentsThatTheCheckpointLacks) {
  Config config = saved_after_3();
  config.training.optimizer = OptimizerKind::sgd;
  train_ranks(config);
  ::testing::internal::CaptureStderr();
  train_ranks(going_on());
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("has no optimizer/exp_avg: it begins at zero"), std::string::npos) << said;
  const TrainState state = read_state(folder("to") / "6").train;
  EXPECT_EQ(state.step, 6);
  EXPECT_EQ(state.updates, 3);
}

TEST_F(ResumeOtherwiseTest, RefusesALayoutThatCannotMakeTheBatch) {
  train_ranks(saved_after_3());
  const auto refusal = [&](int64_t micro_batch_size, int64_t dp_size) -> std::string {
    Config config = going_on();
    config.training.micro_batch_size = micro_batch_size;
    config.training.global_batch_size = micro_batch_size * dp_size;
    config.distributed.dp_size = dp_size;
    try {
      prepare_run(config, /*on_gpu=*/false);
    } catch (const UserError& error) {
      return error.what();
    }
    return "nothing";
  };
  EXPECT_NE(refusal(3, 2).find("with dp_size 2 use micro_batch_size 1, 2"), std::string::npos)
      << refusal(3, 2);
  EXPECT_NE(refusal(1, 3).find("use dp_size 1, 2, 4"), std::string::npos) << refusal(1, 3);
  EXPECT_EQ(refusal(2, 1), "nothing");
}

TEST_F(ResumeOtherwiseTest, OtherDataBeginAtTheirFirstRow) {
  train_ranks(saved_after_3());
  Config config = going_on();
  EXPECT_EQ(prepare_run(config, /*on_gpu=*/false).data.position, 12);
  config.training.seq_length = 32;
  const picotron::Run run = prepare_run(config, /*on_gpu=*/false);
  EXPECT_EQ(run.data.position, 0);
  const auto says = [](const std::string& note) {
    return note.find("the data begin at their first row") != std::string::npos;
  };
  EXPECT_EQ(std::count_if(run.datasets.notes.begin(), run.datasets.notes.end(), says), 1);
}

TEST_F(ResumeOtherwiseTest, TheSameDataAreThoseThatMakeTheSameRows) {
  const auto goes_on = [](const std::string& saved, const std::string& opened, bool alike = true) {
    const DataPosition before{.name = saved, .seq_length = 16, .num_rows = 100, .position = 12};
    const DataPosition now{.name = opened, .seq_length = 16, .num_rows = 100};
    std::vector<std::string> notes;
    return go_on_with(before, now, alike, notes).position == 12;
  };
  EXPECT_TRUE(goes_on("here/x.npy", "there/x.npy"));  // moved
  EXPECT_TRUE(goes_on("here/code", "there/code/"));
  EXPECT_FALSE(goes_on("here/code/", "here/books/"));
  EXPECT_TRUE(goes_on("0.7 here/x.npy 0.3 here/y.npy", "0.7 there/x.npy 0.3 there/y.npy"));
  EXPECT_FALSE(goes_on("0.7 here/x.npy 0.3 here/y.npy", "0.3 here/x.npy 0.7 here/y.npy"));
  EXPECT_FALSE(goes_on("0.7 here/x.npy 0.3 here/y.npy", "0.7 here/z.npy 0.3 here/y.npy"));
  EXPECT_FALSE(goes_on("here/x.npy", "here/x.npy", /*alike=*/false));

  train_ranks(saved_after_3());
  Config config = going_on();
  const Start start = find_start(config).value();
  EXPECT_TRUE(reads_alike(start, config));
  config.dataset.text_column = "body";
  EXPECT_FALSE(reads_alike(start, config));
}

TEST_F(ResumeOtherwiseTest, TensorsOfSeveralPieces) {
  // 77 MB in float32: three pieces of 32 MB on their way to the disk, and three on the way back.
  const auto large = [&](const Distributed& distributed, const char* save_dir) {
    Config config = config_of(distributed, DType::float32, /*tied=*/true, folder(save_dir));
    config.model.vocab_size = 600'000;
    config.model.num_hidden_layers = 1;
    return until(config, 1);
  };
  train_ranks(large(axes(1, 1, 1, 1), "from"));
  Config to = large(axes(2, 2, 1, 1), "to");
  to.checkpoint.load_path = folder("from").string();
  write_again(opened(to));
  EXPECT_EQ(files_of(folder("to") / "1"), files_of(folder("from") / "1"));
}

// Every rank, each of the run that is given to it, refuses to train and says why.
void expect_refusal(const std::vector<Run>& runs, const std::string& says) {
  on_ranks(runs[0], [&](const Rendezvous& rendezvous, const Device& device) {
    try {
      train(runs[static_cast<size_t>(rendezvous.global_rank)], rendezvous, device);
      ADD_FAILURE() << "it trains";
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    }
  });
}

TEST_F(ResumeOtherwiseTest, RefusesACheckpointWithMoreThanTheModelHas) {
  train_ranks(saved_after_3());
  Config config = going_on();
  config.model.num_hidden_layers = 4;
  expect_refusal({opened(config)}, "the model has no tensor model.layers.4.");
}

TEST_F(ResumeOtherwiseTest, RefusesRanksThatHaveFoundDifferentCheckpoints) {
  train_ranks(saved_after_3());
  Config config = going_on();
  config.distributed.dp_size = 2;
  std::vector<picotron::Run> runs(2, opened(config));
  runs[1].start.reset();
  expect_refusal(runs, "rank 0 starts from step 3 and rank 1 from step 0");
}

TEST_F(ResumeOtherwiseTest, ALinkToACheckpointIsTheCheckpoint) {
  train_ranks(saved_after_3());
  fs::create_directory_symlink(folder("from") / "3", folder("best"));
  Config config = saved_after_3();
  config.checkpoint.load_path = folder("best").string();
  EXPECT_TRUE(goes_on_in_place(folder("from"), find_start(config)));
  EXPECT_FALSE(goes_on_in_place(folder("to"), find_start(config)));
}

TEST_F(ResumeOtherwiseTest, RefusesWeightsThatItWouldSetAside) {
  train_ranks(saved_after_3());
  Config config = saved_after_3();
  config.model.init_from = (folder("from") / "3" / "model").string();
  EXPECT_THROW(prepare_run(config, /*on_gpu=*/false), UserError);
  config.checkpoint.save_dir = folder("to").string();
  EXPECT_NO_THROW(prepare_run(config, /*on_gpu=*/false));
  config.model.name = std::exchange(config.model.init_from, std::nullopt);
  EXPECT_NO_THROW(prepare_run(config, /*on_gpu=*/false));
  config.checkpoint.save_dir = folder("from").string();
  EXPECT_THROW(prepare_run(config, /*on_gpu=*/false), UserError);
  config.checkpoint.resume = Resume::automatic;
  EXPECT_NO_THROW(prepare_run(config, /*on_gpu=*/false));
}

}  // namespace
}  // namespace picotron
