// picotron create-config: flags, spelled as the reference spells them, become
// OUT_DIR/EXP_NAME/config.json, with every key written out, and a sketch of the run: size, batch,
// layout, memory. It only ever adds: an existing experiment is left alone unless --overwrite says
// to replace its config.json, and a token is never written, for folders of experiments get shared.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "model/architectures.h"
#include "train/hub_names.h"
#include "train/layout.h"
#include "train/metrics.h"
#include "train/plan.h"
#include "train/run.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

bool gives(const std::vector<Override>& overrides, std::string_view key) {
  return std::any_of(overrides.begin(), overrides.end(),
                     [&](const Override& given) { return given.key == key; });
}

std::string sketch(const Config& config, const LlamaConfig& model) {
  const Distributed& d = config.distributed;
  const DType dtype = planned_dtype(config);
  const MemoryEstimate memory = most_memory(config, model, dtype);
  return fmt::format(
      "Model: {} parameters, {} layers, hidden {}, {} heads ({} key/value), vocabulary {}\n"
      "Batch: {} sequences of {} tokens, {} tokens per step, {} steps\n"
      "Layout: dp {} · pp {} · cp {} · tp {}, {} rank{}\n"
      "Memory of the fullest rank, about, in {}: "
      "weights {}, gradients {}, optimizer {}, activations {}, in all {} (picotron plan says more)",
      human_format(static_cast<double>(count_parameters(model))), model.num_hidden_layers,
      model.hidden_size, model.num_attention_heads, model.num_key_value_heads, model.vocab_size,
      global_batch_size(config), config.training.seq_length, tokens_per_step(config),
      config.training.total_train_steps, d.dp_size, d.pp_size, d.cp_size, d.tp_size,
      world_size(config), world_size(config) == 1 ? "" : "s", to_string(dtype),
      bytes_text(memory.weights), bytes_text(memory.gradients),
      bytes_text(memory.master + memory.moments), bytes_text(memory.activations),
      bytes_text(memory.total()));
}

// Complete or not at all: a run that reads it while it is replaced sees the old or the new one.
void write_file(const fs::path& path, const std::string& text) {
  const fs::path aside = path.string() + fmt::format(".{}", getpid());
  std::ofstream file(aside, std::ios::binary);
  if (!file) throw user_error("{} cannot be written; give another --out_dir", path.string());
  file << text;
  file.close();
  std::error_code error;
  if (file) fs::rename(aside, path, error);
  if (!file || error) {
    std::error_code ignored;
    fs::remove(aside, ignored);
    throw run_error("{} could not be written ({}); is the disk full?", path.string(),
                    error ? error.message() : "write failed");
  }
}

std::optional<std::string> contents_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

int create_config_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Write OUT_DIR/EXP_NAME/config.json and say what the run will be.", "create-config");
  std::string out_dir = "tmp", exp_name = "dummy_exp";
  bool overwrite = false;
  app.add_option("--out_dir", out_dir, "Folder of experiments")->capture_default_str();
  app.add_option("--exp_name", exp_name, "Name of the experiment, a folder in it")
      ->capture_default_str();
  app.add_flag("--overwrite", overwrite, "Replace an existing config.json");
  app.footer(short_flags_help());
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;
  if (out_dir.empty() || exp_name.empty())
    throw user_error("--out_dir and --exp_name need a name each");
  if (exp_name == "." || exp_name == ".." || exp_name.find('/') != std::string::npos) {
    throw user_error(
        "--exp_name {} is a path, and it names one folder in --out_dir; give the path as --out_dir",
        exp_name);
  }

  const bool had_token = std::erase_if(overrides, [](const Override& given) {
                           return given.key == "environment.HF_TOKEN";
                         }) > 0;
  if (had_token)
    log::warn("the token is not written to a file; set HF_TOKEN in the environment of the run");

  const fs::path folder = fs::absolute(fs::path(out_dir) / exp_name).lexically_normal();
  if (!gives(overrides, "checkpoint.save_dir")) {
    overrides.push_back({.key = "checkpoint.save_dir",
                         .value = (folder / "ckpt").string(),
                         .spelled = "--save_dir"});
  }
  const Config config = config_from_flags(overrides, known_layout_sizes);
  const LlamaConfig model = resolve_named_architecture(config, vocabulary_of_data(config));
  check_layout(config, layout_sizes(model));

  const fs::path path = folder / "config.json";
  const std::string text = to_json(config);
  const std::optional<std::string> present = contents_of(path);
  if (present && *present != text && !overwrite) {
    throw user_error("{} exists and differs; give another --exp_name, or --overwrite to replace it",
                     path.string());
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw user_error("the folder {} cannot be made ({}); give another --out_dir", folder.string(),
                     error.message());
  }
  write_file(path, text);
  for (const std::string& sentence : warnings(config)) log::warn(sentence);
  log::print(sketch(config, model));
  log::print(fmt::format("Wrote {}; start it with: picotron train --config {}", path.string(),
                         path.string()));
  return 0;
}

}  // namespace picotron
