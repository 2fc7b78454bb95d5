// What a run says of itself: numbers for people, the step line, metrics.jsonl with every key and
// all digits, and that the metrics of an earlier run are never written over.
#include "train/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/files.h"
#include "dist/device.h"
#include "model/architectures.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

TEST(HumanFormatTest, SuffixesAreThoseOfTheReference) {
  const std::vector<std::pair<double, std::string>> table = {
      {0, "0.00"},          {0.5, "0.50"},        {207.5, "207.50"}, {999, "999.00"},
      {1000, "1.00K"},      {4096, "4.10K"},      {51200, "51.20K"}, {999'000, "999.00K"},
      {1'000'000, "1.00M"}, {134.5e6, "134.50M"}, {1.71e9, "1.71B"}, {2e12, "2.00T"},
      {5e15, "5000.00T"},   {-4096, "-4.10K"},
  };
  for (const auto& [number, text] : table) EXPECT_EQ(human_format(number), text);
}

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path) << text;
}

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() {
    std::string name = (fs::temp_directory_path() / "picotron_metrics_XXXXXX").string();
    folder = mkdtemp(name.data());
  }
  ~MetricsTest() override { fs::remove_all(folder); }
  fs::path folder;
};

TEST_F(MetricsTest, SetAsideNeverOverwrites) {
  const fs::path file = folder / "metrics.jsonl";
  EXPECT_EQ(set_aside(file.string()), "");
  for (const char* text : {"first", "second", "third"}) {
    write(file, text);
    set_aside(file.string());
    EXPECT_FALSE(fs::exists(file));
  }
  EXPECT_EQ(read(folder / "metrics.1.jsonl"), "first");
  EXPECT_EQ(read(folder / "metrics.2.jsonl"), "second");
  EXPECT_EQ(read(folder / "metrics.3.jsonl"), "third");
  fs::remove(folder / "metrics.2.jsonl");  // the first free name
  write(file, "fourth");
  EXPECT_EQ(set_aside(file.string()), (folder / "metrics.2.jsonl").string());

  fs::create_directories(folder / "200" / "model");
  EXPECT_EQ(set_aside((folder / "200").string()), (folder / "200.old1").string());
  EXPECT_TRUE(fs::exists(folder / "200.old1" / "model")) << "a folder goes as a whole";
}

// A GPU whose peak is published, so that MFU is a number one can compute.
class H100 : public Device {
 public:
  c10::Device torch() const override { return c10::Device("cpu"); }
  std::string name() const override { return "NVIDIA H100 80GB HBM3"; }
  int64_t peak_memory_bytes() const override { return 1'500'000'000; }
  void synchronize() const override {}
  c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>&, int,
                                                      int,
                                                      std::chrono::milliseconds) const override {
    throw BrokenInvariant("nobody communicates here");
  }
};

class RunLogTest : public MetricsTest {
 protected:
  // Two replicas of the smallest model, in sequences of 8.
  picotron::Run run_of(const std::string& more = "") {
    const std::string config = R"({"distributed": {"dp_size": 2, "use_cpu": true},
      "model": {"name": null, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "intermediate_size": 24, "dtype": "float32"},
      "dataset": {"name": "builtin:stories"},
      "training": {"seq_length": 8, "micro_batch_size": 2, "num_samples": 100)" +
                               more + R"(}, "checkpoint": {"save_dir": ")" + folder.string() +
                               "\"}}";
    return prepare_run(parse_config(config, "test"), /*on_gpu=*/false);
  }

  static StepMetrics step_of(int64_t step) {
    StepMetrics m{.step = step,
                  .loss = 2.0 / 3,
                  .grad_norm = 1.0 / 7,
                  .learning_rate = 0.1 + 0.2,
                  .trained_tokens = 4096 * step,
                  .tokens_per_step = 4096,
                  .step_seconds = 0.08,
                  .memory_bytes = 1'230'000'000};
    m.bytes[static_cast<size_t>(record::Axis::dp_cp)] = 1001;
    m.bytes[static_cast<size_t>(record::Axis::world)] = 16;
    return m;
  }

  // Runs `body` and returns what it printed.
  template <class F>
  static std::string printed(const F& body) {
    ::testing::internal::CaptureStdout();
    body();
    return ::testing::internal::GetCapturedStdout();
  }

  std::vector<nlohmann::json> lines() const {
    std::vector<nlohmann::json> result;
    std::ifstream file(folder / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) result.push_back(nlohmann::json::parse(line));
    return result;
  }

  const H100 device;
};

TEST_F(RunLogTest, EveryStepIsOneJsonLineWithEveryKeyAndAllDigits) {
  const picotron::Run run = run_of();
  printed([&] {
    RunLog log(run, device, 2);
    log.write(step_of(1));
    StepMetrics second = step_of(2);
    second.validation_loss = 1.0 / 9;
    second.loss_spike = true;
    log.write(second);
  });
  const auto json = lines();
  ASSERT_EQ(json.size(), 2u);
  const double rate = 4096 / 0.08;
  const double flops = reference_flops_per_token(run.architecture, 8);
  const std::map<std::string, double> expected = {{"step", 1},
                                                  {"loss", 2.0 / 3},
                                                  {"grad_norm", 1.0 / 7},
                                                  {"learning_rate", 0.1 + 0.2},
                                                  {"trained_tokens", 4096},
                                                  {"tokens_per_second", rate},
                                                  {"tokens_per_second_per_gpu", rate / 2},
                                                  {"mfu", rate / 2 * flops / 989e12},
                                                  {"memory_bytes", 1'230'000'000},
                                                  {"step_seconds", 0.08},
                                                  {"bytes_tp", 0},
                                                  {"bytes_cp", 0},
                                                  {"bytes_pp", 0},
                                                  {"bytes_dp_cp", 1001},
                                                  {"bytes_world", 16}};
  for (const auto& [key, value] : expected) {
    ASSERT_TRUE(json[0].contains(key)) << key;
    if (key == "mfu")
      EXPECT_NEAR(json[0][key].get<double>() / value, 1, 1e-3);  // the published peak is rounded
    else
      EXPECT_EQ(json[0][key].get<double>(), value) << key;
  }
  EXPECT_FALSE(json[0].contains("validation_loss")) << "only on steps that evaluate";
  EXPECT_FALSE(json[0].contains("loss_spike")) << "only on steps that are one";
  EXPECT_EQ(json[0].size(), expected.size());
  EXPECT_EQ(json[1]["validation_loss"].get<double>(), 1.0 / 9);
  EXPECT_EQ(json[1]["trained_tokens"].get<int64_t>(), 8192);
  EXPECT_EQ(json[1]["loss_spike"], true);
}

TEST_F(RunLogTest, TheStepLineIsTheReferences) {
  const picotron::Run run = run_of();
  const std::string text = printed([&] {
    RunLog log(run, device, 12);
    log.write(step_of(12));
  });
  EXPECT_NE(text.find("Layout: dp 2"), std::string::npos) << "what is about to be trained";
  EXPECT_NE(
      text.find("[rank 0] Step: 12    | Loss: 0.6667 | Global batch size:   4.10K | Tokens/s: "
                " 51.20K | Tokens/s/GPU:  25.60K | Tokens:  49.15K | MFU:  0.00% | Memory "
                "usage:   1.23GB\n"),
      std::string::npos)
      << text;
  EXPECT_EQ(text.find('\r'), std::string::npos) << "no progress bar where no terminal is";

  const picotron::Run limited = run_of(R"(, "max_tokens": 100000)");
  const std::string with_limit = printed([&] {
    RunLog log(limited, device, 12);
    StepMetrics m = step_of(12);
    m.validation_loss = 1.5;
    m.loss_spike = true;
    log.write(m);
  });
  EXPECT_NE(with_limit.find("Tokens:  49.15K/100.00K |"), std::string::npos) << with_limit;
  EXPECT_NE(with_limit.find("GB | Loss spike | Validation loss: 1.5000\n"), std::string::npos)
      << with_limit;
}

TEST_F(RunLogTest, MfuOfMaskedDocumentsCountsNoAttention) {
  picotron::Run run = run_of();
  run.config.dataset.document_masking = true;
  printed([&] {
    RunLog log(run, device, 1);
    log.write(step_of(1));
  });
  const double flops = reference_flops_per_token(run.architecture, 0);
  EXPECT_NEAR(lines()[0]["mfu"].get<double>() / (4096 / 0.08 / 2 * flops / 989e12), 1, 1e-3);
}

TEST_F(RunLogTest, TheSummaryOfARunThatGoesOnNamesItsFirstStep) {
  const picotron::Run run = run_of();
  const auto summary_from = [&](int64_t step) {
    return printed([&] {
      RunLog log(run, device, step);
      log.write(step_of(step));
      log.summary(false);
    });
  };
  EXPECT_NE(summary_from(1).find("0.6667 at the first step,"), std::string::npos);
  EXPECT_NE(summary_from(4).find("0.6667 at step 4,"), std::string::npos);
}

TEST_F(RunLogTest, AnEarlierRunsMetricsAreKept) {
  const picotron::Run run = run_of();
  write(folder / "metrics.jsonl", "earlier\n");
  const std::vector<std::string> said = clear_the_way(folder, std::nullopt);
  printed([&] {
    RunLog log(run, device, 1);
    log.write(step_of(1));
  });
  EXPECT_EQ(read(folder / "metrics.1.jsonl"), "earlier\n");
  EXPECT_EQ(lines().size(), 1u);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_NE(said[0].find("metrics.1.jsonl"), std::string::npos) << "and the run says where";
}

TEST_F(RunLogTest, OtherRanksNeitherPrintNorWrite) {
  const picotron::Run run = run_of();
  record::Recorder recorder(1);
  const record::Attach attached(&recorder);
  const std::string text = printed([&] {
    RunLog log(run, device, 1);
    log.write(step_of(1));
    log.say_epoch(1);
    log.summary(false);
  });
  EXPECT_EQ(text, "");
  EXPECT_FALSE(fs::exists(folder / "metrics.jsonl"));
}

TEST_F(RunLogTest, TheSummaryNamesLossFloorAndFiles) {
  const picotron::Run run = run_of();
  const std::string text = printed([&] {
    RunLog log(run, device, 5);
    for (int64_t step = 1; step <= 5; ++step) {
      StepMetrics m = step_of(step);
      m.loss = 10 - static_cast<double>(step);
      if (step <= 3) m.step_seconds = 8;  // libraries warm up: not of the median
      log.write(m);
    }
    log.say_epoch(1);
    log.write({SaveReport{.step = 5, .folder = "somewhere/5"}});
    log.summary(false);
    log.summary(true);
  });
  for (const char* part :
       {"epoch 2 begins", "Done after 5 steps, 20.48K tokens", "Stopped on request after 5 steps",
        "9.0000 at the first step, 5.0000 at the last (7.0000 over the last 5)", "best possible",
        "51.20K (median)", "1.50 GB", "metrics.jsonl", "somewhere/5/model"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is missing in\n" << text;
  }
}

TEST_F(RunLogTest, AFolderThatCannotBeWrittenIsOneSentence) {
  const picotron::Run run = run_of();
  fs::remove_all(folder);
  write(folder, "a file where the folder should be");
  try {
    printed([&] { const RunLog log(run, device, 1); });
    FAIL() << "it went on";
  } catch (const UserError& error) {
    ::testing::internal::GetCapturedStdout();
    EXPECT_NE(std::string(error.what()).find(folder.string()), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("save_dir"), std::string::npos);
  }
}

}  // namespace
}  // namespace picotron
