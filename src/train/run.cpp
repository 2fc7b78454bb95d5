// Opens data and architecture, decides the dtype, and refuses what cannot fit this machine.
#include "train/run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "checkpoint/huggingface.h"
#include "core/error.h"
#include "dist/device.h"
#include "dist/stop.h"
#include "kernels/matmul.h"
#include "train/batches.h"
#include "train/hub_names.h"
#include "train/layout.h"
#include "train/metrics.h"
#include "train/plan.h"

namespace picotron {
namespace {

DType resolve_dtype(const Config& config, bool on_gpu, std::vector<std::string>& warnings) {
  if (on_gpu && config.model.dtype == DType::float64)
    throw user_error("model.dtype float64 is for tests on a CPU; set distributed.use_cpu true");
  const DType dtype = planned_dtype(config, on_gpu);
  if (config.model.dtype == DType::bfloat16 && dtype != DType::bfloat16) {
    warnings.emplace_back(
        "this CPU has neither AVX512-BF16 nor AMX, so bfloat16 would be slower: computing in "
        "float32");
  }
  return dtype;
}

// A run that cannot fit is refused before it has made the machine swap or lost a rank to the
// kernel. Activations are known only about, so they alone must exceed the memory twice.
void check_memory(const Run& run, DType dtype) {
  const MemoryEstimate need = most_memory(run.config, run.architecture, dtype);
  const double fixed = need.fixed();
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (fixed <= memory && need.activations <= 2 * memory) return;
  throw user_error(
      "a rank would need about {:.4g} GB for weights, gradients and optimizer and {:.4g} GB for "
      "activations, and this machine has {:.4g} GB; use a smaller {}",
      fixed / 1e9, need.activations / 1e9, memory / 1e9,
      fixed > memory ? "model" : "micro_batch_size or seq_length");
}

}  // namespace

bool computes_on_gpu(const Config& config) {
  return !config.distributed.use_cpu.value_or(!gpu_available());
}

DType planned_dtype(const Config& config, bool on_gpu) {
  const bool quick = on_gpu || cpu_has_fast_bfloat16();
  const DType asked = config.model.dtype.value_or(quick ? DType::bfloat16 : DType::float32);
  return asked == DType::bfloat16 && !quick ? DType::float32 : asked;
}

c10::ScalarType scalar_type_of(DType dtype) {
  if (dtype == DType::float64) return c10::kDouble;
  return dtype == DType::float32 ? c10::kFloat : c10::kBFloat16;
}

std::optional<int64_t> vocabulary_of_data(const Config& config) {
  if (config.dataset.tokenizer == "bytes") return 256;
  if (config.dataset.name != "builtin:stories") return std::nullopt;
  return open_datasets({.name = config.dataset.name,
                        .tokenizer = "",
                        .seq_length = config.training.seq_length,
                        .seed = static_cast<uint64_t>(config.training.seed),
                        .num_samples = config.training.num_samples,
                        .hold_out = false,
                        .validation = "",
                        .validation_fraction = config.dataset.validation_fraction})
      .train->vocab_size();
}

namespace {

// The tokenizer of the model that is named: of its folder, or of the hub's model of that name.
std::string tokenizer_of_model(const ModelKeys& model, const HubOptions& hub,
                               std::vector<std::string>& notes) {
  std::error_code ignored;
  for (const auto& name : {model.init_from, model.name}) {
    if (!name) continue;
    if (is_hub_id(*name)) return fetch_model(*name, ModelFiles::tokenizer, hub, notes).string();
    if (!std::filesystem::is_directory(*name, ignored)) continue;
    if (!files_of_tokenizer(*name).empty()) return *name;
    if (tokenizer_of(*name) == "bytes") return "bytes";
  }
  return "";
}

}  // namespace

Run prepare_run(const Config& config, bool on_gpu) {
  Run run{.config = config, .start = find_start(config)};
  std::vector<std::string> differences;
  if (run.start) differences = take_over(*run.start, run.config);
  const Training& training = config.training;
  const DatasetKeys& data = config.dataset;
  // The rows of builtin:stories hang on the seed, so a run that goes on keeps it.
  DataPosition opened{.name = data.name,
                      .seq_length = training.seq_length,
                      .seed = static_cast<uint64_t>(training.seed),
                      .shuffle = data.shuffle};
  const bool keeps_seed = run.start && run.start->state.train.data.name == data.name;
  const uint64_t seed = keeps_seed ? run.start->state.train.data.seed : opened.seed;
  const HubOptions hub = hub_options(config);
  std::vector<std::string> notes;  // of downloads
  if (!run.start) check_sources(config);
  run.model = with_folders(config.model, hub, notes);
  run.datasets = open_datasets(
      {.name = data.name,
       .tokenizer = data.tokenizer.value_or(""),
       .model_tokenizer = [&] { return tokenizer_of_model(config.model, hub, notes); },
       .text_column = data.text_column,
       .num_proc = data.num_proc,
       .stop = stop_requested,
       .subset_name = data.subset_name.value_or(""),
       .split = data.split,
       .hub = hub,
       .seq_length = training.seq_length,
       .seed = seed,
       .num_samples = training.num_samples,
       .hold_out = training.eval_interval > 0,
       .validation = data.validation.value_or(""),
       .validation_fraction = data.validation_fraction});
  run.datasets.notes.insert(run.datasets.notes.begin(), notes.begin(), notes.end());
  const Dataset& train_data = *run.datasets.train;
  opened.num_rows = train_data.num_rows();
  masked_document_end(config, train_data);  // before ranks are started
  if (run.datasets.validation) masked_document_end(config, *run.datasets.validation);
  run.data = run.start ? go_on_with(run.start->state.train.data, opened,
                                    reads_alike(*run.start, config), differences)
                       : opened;
  if (run.start) {
    run.datasets.notes.push_back(fmt::format("Going on from {}, written after step {} in {}",
                                             run.start->checkpoint.string(),
                                             run.start->state.train.step, run.start->state.layout));
  }
  for (const std::string& difference : differences) run.datasets.notes.push_back("  " + difference);
  run.architecture = resolve_architecture(run.model, train_data.vocab_size());
  if (train_data.vocab_size().value_or(0) > run.architecture.vocab_size) {
    throw user_error(
        "vocab_size {} of the model is smaller than the {} tokens of data set {}; set "
        "model.vocab_size {} or more",
        run.architecture.vocab_size, *train_data.vocab_size(), data.name, *train_data.vocab_size());
  }
  // Positions that it will have seen: of a model of our own, no more than its rows have.
  const bool own =
      !config.model.name && !config.model.init_from && !config.model.max_position_embeddings;
  if (own || training.seq_length > run.architecture.max_position_embeddings) {
    run.architecture.max_position_embeddings = training.seq_length;
  }
  check_layout(config, layout_sizes(run.architecture));
  // Stages that wait for each other in a circle would hang: proved not to before any is started.
  const ScheduleOptions schedule = schedule_options(config, 0);
  check_schedules(all_stages(schedule), schedule, Delivery::rendezvous);
  const DType dtype = resolve_dtype(config, on_gpu, run.warnings);
  run.dtype = scalar_type_of(dtype);
  if (!on_gpu) check_memory(run, dtype);
  run.tokenizer = run.datasets.tokenizer;
  return run;
}

int64_t last_step(const Run& run) {
  const Training& training = run.config.training;
  if (!training.max_tokens) return training.total_train_steps;
  const TrainState begun = run.start ? run.start->state.train : TrainState{};
  const int64_t left = std::max<int64_t>(0, *training.max_tokens - begun.trained_tokens);
  const int64_t tokens = tokens_per_step(run.config);
  return std::min(training.total_train_steps, begun.step + (left + tokens - 1) / tokens);
}

std::string describe(const Run& run) {
  const Config& config = run.config;
  const LlamaConfig& model = run.architecture;
  const auto parameters = static_cast<double>(count_parameters(model));
  const Distributed& d = config.distributed;
  return fmt::format(
      "Model: {} parameters, {} layers, hidden {}, {} heads ({} key/value), vocabulary {}, {}\n"
      "Data: {}, {} rows of {} tokens\n"
      "Layout: dp {} · tp {} · pp {} · cp {}, {} sequences ({} tokens) a step",
      human_format(parameters), model.num_hidden_layers, model.hidden_size,
      model.num_attention_heads, model.num_key_value_heads, model.vocab_size,
      c10::toString(run.dtype), run.datasets.train->name(), run.datasets.train->num_rows(),
      config.training.seq_length, d.dp_size, d.tp_size, d.pp_size, d.cp_size,
      global_batch_size(config), tokens_per_step(config));
}

}  // namespace picotron
