// picotron create-config: what it writes, what it leaves alone, and what it says.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/config.h"
#include "core/error.h"
#include "kernels/matmul.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

class CreateConfigTest : public testing::Test {
 protected:
  CreateConfigTest() { fs::create_directories(folder_); }
  ~CreateConfigTest() override { fs::remove_all(folder_); }

  // Runs the command with --out_dir; returns what it printed on stdout, or the UserError's words.
  std::string run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--out_dir", folder_.string()});
    testing::internal::CaptureStdout();
    try {
      EXPECT_EQ(create_config_command(arguments), 0);
    } catch (const UserError& error) {
      testing::internal::GetCapturedStdout();
      return std::string("refused: ") + error.what();
    }
    return testing::internal::GetCapturedStdout();
  }

  static std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

  const fs::path folder_ =
      fs::temp_directory_path() / ("picotron_create_config_" + std::to_string(getpid()));
};

TEST_F(CreateConfigTest, WritesTheReferencesExample) {
  const std::string said = run({"--exp_name",
                                "first",
                                "--dp",
                                "2",
                                "--pp_engine",
                                "afab",
                                "--model_name",
                                "HuggingFaceTB/SmolLM-1.7B",
                                "--num_hidden_layers",
                                "5",
                                "--num_attention_heads",
                                "32",
                                "--num_key_value_heads",
                                "32",
                                "--grad_acc_steps",
                                "2",
                                "--mbs",
                                "4",
                                "--seq_len",
                                "128",
                                "--use_cpu",
                                "--use_fused_adam",
                                "--dataset",
                                "text.txt",
                                "--dtype",
                                "bfloat16"});
  const Config config = load_config((folder_ / "first/config.json").string());
  EXPECT_EQ(config.distributed.dp_size, 2);
  EXPECT_EQ(config.distributed.pp_engine, PpEngine::afab);
  EXPECT_EQ(config.distributed.backend, Backend::gloo);
  EXPECT_EQ(config.model.name, "HuggingFaceTB/SmolLM-1.7B");
  EXPECT_EQ(config.model.num_hidden_layers, 5);
  EXPECT_EQ(config.training.seq_length, 128);
  EXPECT_EQ(config.dataset.name, "text.txt");
  EXPECT_EQ(config.checkpoint.save_dir, (folder_ / "first/ckpt").string());
  // 5 layers of 4·2048² + 3·2048·8192 + 2·2048, the last norm, a tied embedding of 49152·2048.
  EXPECT_NE(said.find("436.23M parameters"), std::string::npos) << said;
  EXPECT_NE(said.find("16 sequences of 128 tokens, 2048 tokens per step"), std::string::npos)
      << said;
  EXPECT_NE(said.find("dp 2 · pp 1 · cp 1 · tp 1, 2 ranks"), std::string::npos) << said;
  const char* memory = cpu_has_fast_bfloat16()
                           ? "in bfloat16: weights 872 MB, gradients 1.74 GB, optimizer 2.62 GB"
                           : "in float32: weights 1.74 GB, gradients 1.74 GB, optimizer 1.74 GB";
  EXPECT_NE(said.find(memory), std::string::npos) << said;
}

TEST_F(CreateConfigTest, NeverWritesAToken) {
  run({"--hf_token", "hf_secret"});
  run({"--exp_name", "dotted", "--environment.HF_TOKEN=hf_secret"});
  for (const char* name : {"dummy_exp", "dotted"}) {
    const std::string text = read(folder_ / name / "config.json");
    EXPECT_NE(text.find("HF_TOKEN"), std::string::npos);
    EXPECT_EQ(text.find("hf_secret"), std::string::npos);
  }
}

TEST_F(CreateConfigTest, LeavesAnExperimentAlone) {
  run({"--mbs", "2"});
  const fs::path kept = folder_ / "dummy_exp/ckpt/kept";
  fs::create_directories(kept);
  const std::string before = read(folder_ / "dummy_exp/config.json");
  EXPECT_EQ(run({"--mbs", "2"}).find("refused"), std::string::npos);  // the same again is no harm
  EXPECT_NE(run({"--mbs", "4"}).find("--overwrite"), std::string::npos);
  EXPECT_EQ(read(folder_ / "dummy_exp/config.json"), before);
  run({"--mbs", "4", "--overwrite"});
  EXPECT_NE(read(folder_ / "dummy_exp/config.json"), before);
  EXPECT_TRUE(fs::exists(kept));
}

TEST_F(CreateConfigTest, TwoExperimentsShareNoFolderUnlessToldTo) {
  run({"--exp_name", "a"});
  run({"--exp_name", "b"});
  run({"--exp_name", "c", "--save_dir", "mine"});
  EXPECT_NE(load_config((folder_ / "a/config.json").string()).checkpoint.save_dir,
            load_config((folder_ / "b/config.json").string()).checkpoint.save_dir);
  EXPECT_EQ(load_config((folder_ / "c/config.json").string()).checkpoint.save_dir, "mine");
}

TEST_F(CreateConfigTest, BadFlagsWriteNothing) {
  EXPECT_NE(
      run({"--modle_name", "x"}).find("unknown flag --modle_name; did you mean --model_name?"),
      std::string::npos);
  EXPECT_NE(run({"--exp_nam", "x"}).find("did you mean --exp_name?"), std::string::npos);
  EXPECT_NE(run({"--zzzzzzzzzzzz"}).find("unknown flag --zzzzzzzzzzzz; see"), std::string::npos);
  EXPECT_NE(run({"stray"}).find("unexpected argument 'stray'"), std::string::npos);
  EXPECT_NE(run({"--exp_name="}).find("refused: "), std::string::npos);
  EXPECT_NE(run({"--dp", "x"}).find("--dp is \"x\"; it must be a whole number"), std::string::npos);
  EXPECT_NE(run({"--tp", "3"}).find("use 1, 2 or 4"), std::string::npos);
  ::setenv("HF_HUB_OFFLINE", "1", 1);
  EXPECT_NE(run({"--model_name", "no/such"}).find("model no/such is not in"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(folder_));

  std::ofstream(folder_ / "file") << "x";
  EXPECT_NE(run({"--exp_name", "file"}).find("cannot be made"), std::string::npos);
}

}  // namespace
}  // namespace picotron
