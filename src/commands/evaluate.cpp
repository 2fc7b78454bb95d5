// picotron evaluate: the loss of a trained model on a data set, in any layout.
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "checkpoint/huggingface.h"
#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/launch.h"
#include "model/huggingface_config.h"
#include "train/evaluate.h"
#include "train/hub_names.h"
#include "train/layout.h"
#include "train/metrics.h"

namespace picotron {
namespace {

bool is_given(const std::vector<Override>& overrides, std::string_view key) {
  return std::ranges::any_of(overrides, [&](const Override& o) { return o.key == key; });
}

std::optional<std::string> token_of(const std::vector<Override>& overrides) {
  for (const Override& given : overrides)
    if (given.key == "environment.HF_TOKEN") return given.value;
  return std::nullopt;
}

// The run whose validation is what is asked for.
Config config_of(const std::string& model_folder, const std::string& data,
                 std::vector<Override> overrides) {
  const auto by_default = [&](const std::string& key, const std::string& value) {
    if (!is_given(overrides, key)) overrides.push_back({.key = key, .value = value});
  };
  const LlamaConfig model = read_huggingface_config(model_folder);
  by_default("training.seq_length",
             std::to_string(std::min<int64_t>(1024, model.max_position_embeddings)));
  by_default("training.num_samples", data == "builtin:stories" ? "1000" : "null");
  if (const std::string tokenizer = tokenizer_of(model_folder);
      !tokenizer.empty() && tokenizer != "builtin:stories")
    by_default("dataset.tokenizer", tokenizer);
  overrides.push_back({.key = "model.name", .value = model_folder});
  overrides.push_back({.key = "dataset.name", .value = data});
  overrides.push_back({.key = "dataset.validation", .value = data});
  overrides.push_back({.key = "training.eval_interval", .value = "1"});
  Config config = config_from_flags(overrides, known_layout_sizes);
  resolve_environment(config, [](const char* name) -> const char* { return std::getenv(name); });
  return config;
}

void print(const Evaluation& result, const Dataset& data, bool as_json) {
  if (as_json) {
    nlohmann::ordered_json json = {{"data", data.name()},
                                   {"rows", result.rows},
                                   {"tokens", result.tokens},
                                   {"loss", result.loss},
                                   {"perplexity", result.perplexity()}};
    if (result.bytes > 0) {
      json["bytes"] = result.bytes;
      json["bits_per_byte"] = result.bits_per_byte();
    }
    log::print(json.dump());
    return;
  }
  log::print(fmt::format("{}: {} rows of {} tokens", data.name(), result.rows, data.seq_length()));
  std::string line = fmt::format("loss {:.6f} nats per token | perplexity {:.4f}", result.loss,
                                 result.perplexity());
  if (result.bytes > 0) line += fmt::format(" | {:.5f} bits per byte", result.bits_per_byte());
  if (const auto floor = data.floor()) line += fmt::format(" | best possible loss {:.4f}", *floor);
  log::print(line);
}

}  // namespace

int evaluate_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  const std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Measure the loss of a trained model on a data set, in any layout.", "evaluate");
  std::string checkpoint, model, data;
  bool as_json = false;
  CLI::Option* from_checkpoint =
      app.add_option("--checkpoint", checkpoint, "A checkpoint: save_dir, or one step's folder");
  app.add_option("--model", model, "A Hugging Face folder, or a hub id")->excludes(from_checkpoint);
  app.add_option("--data", data, "The data set: whatever dataset.name may be")->required();
  app.add_flag("--json", as_json, "Print one line of JSON, with every digit");
  app.footer(short_flags_help());
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;
  if (checkpoint.empty() && model.empty())
    throw user_error("evaluate needs --checkpoint DIR or --model DIR");

  const std::string folder =
      model_folder_of(checkpoint.empty() ? model : checkpoint, token_of(overrides)).string();
  const Config config = config_of(folder, data, overrides);
  const bool on_gpu = computes_on_gpu(config);
  const Run run = prepare_run(config, on_gpu);
  std::vector<std::string> argv{"picotron", "evaluate"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const LaunchOptions options{
      .world_size = static_cast<int>(world_size(config)),
      .ranks = config.distributed.ranks,
      .timeout = std::chrono::milliseconds(
          static_cast<int64_t>(1000 * config.distributed.timeout_seconds)),
      .threads_per_rank = static_cast<int>(config.environment.OMP_NUM_THREADS.value_or(0)),
      .argv = argv,
      .ends_at_once = true};
  return launch(options, [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
    const at::NoGradGuard no_backward;
    const std::unique_ptr<Device> device =
        open_device({.use_cpu = config.distributed.use_cpu,
                     .local_rank = local_rank,
                     .share_gpus = config.distributed.backend == Backend::gloo});
    Rendezvous meeting = rendezvous;
    if (on_gpu && config.distributed.backend != Backend::gloo)
      meeting.backend = nccl_backends(*device);
    const Mesh mesh =
        make_mesh(axis_sizes(config), meeting, mesh_options(config, run.architecture));
    Llama part(run.architecture, mesh, llama_options(run, mesh.my.pp, device->torch()));
    load_huggingface(folder, run.architecture, part.parameters());
    print(evaluate(part, run, mesh, device->torch()), *run.datasets.validation, as_json);
    return 0;
  });
}

}  // namespace picotron
