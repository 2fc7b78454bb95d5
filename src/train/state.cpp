// Which tensors a checkpoint has, and from where the first values come.
#include "train/state.h"

#include <ATen/ATen.h>

#include "checkpoint/huggingface.h"
#include "checkpoint/stored_types.h"
#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "dist/collectives.h"
#include "model/initial_values.h"
#include "train/layout.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModel = "model";
constexpr const char* kMaster = "optimizer/master";

at::Tensor values_in(const at::Tensor& flat, const LocalPart& part) {
  return flat.narrow(0, part.parameter->offset + part.begin, part.size());
}

// The weights as the model computes with them; float64 is stored as float32, for nobody else reads
// it, and the masters are exact.
ShardedTensors weights_of(const Llama& model) {
  const at::Tensor& flat = model.parameters().flat();
  const at::ScalarType held = flat.scalar_type();
  return {.folder = kModel,
          .held = held,
          .stored = held == at::kDouble ? at::kFloat : held,
          .values = [&flat](const LocalPart& part) { return values_in(flat, part); }};
}

// What the optimizer keeps; in float64 the model's values too, which are its masters.
std::vector<ShardedTensors> state_of(const Llama& model, const ShardedOptimizer& optimizer) {
  std::vector<ShardedTensors> tensors;
  if (model.parameters().flat().scalar_type() == at::kDouble) {
    tensors.push_back(weights_of(model));
    tensors.back().folder = kMaster, tensors.back().stored = at::kDouble;
  }
  for (const ShardedOptimizer::State& state : optimizer.states()) {
    tensors.push_back({.folder = std::string("optimizer/") + state.name,
                       .held = state.values.scalar_type(),
                       .stored = state.values.scalar_type(),
                       .values = [&optimizer, values = state.values](const LocalPart& part) {
                         return optimizer.within(values, part.parameter->offset + part.begin,
                                                 part.size());
                       }});
  }
  return tensors;
}

}  // namespace

void check_start(const Run& run, const Mesh& mesh, const Device& device) {
  at::Tensor steps = at::zeros({mesh.world_size}, at::device(device.torch()).dtype(at::kLong));
  steps[mesh.global_rank] = run.start ? run.start->state.train.step : 0;
  all_gather(steps, mesh.world).wait();
  steps = steps.cpu();
  const auto* step = steps.const_data_ptr<int64_t>();
  for (int rank = 1; rank < mesh.world_size; ++rank) {
    if (step[rank] != step[0])
      throw user_error(
          "rank 0 starts from step {} and rank {} from step {}: the ranks see different files in "
          "checkpoint.save_dir or load_path; use a folder of a file system that all share",
          step[0], rank, step[rank]);
  }
  if (!run.start) return;
  const auto damage =
      find_damage(run.start->checkpoint, run.start->state, mesh.global_rank, mesh.world_size);
  if (damage) throw user_error("{}{}", *damage, remedy_for_damage(run.start->checkpoint));
}

void fill_first_values(const Run& run, const Llama& model, const at::Tensor& flat) {
  const ModelKeys& keys = run.model;
  const Parameters& parameters = model.parameters();
  if (run.start) {
    const fs::path& checkpoint = run.start->checkpoint;
    ShardedTensors masters{.values = [&](const LocalPart& part) { return values_in(flat, part); }};
    masters.folder = fs::is_directory(checkpoint / kMaster) ? kMaster : kModel;
    read_sharded(checkpoint, huggingface_tensors(model.config()), masters,
                 parts_within(parameters, {{0, parameters.flat_numel()}}));
  } else if (keys.init_from) {
    load_huggingface(*keys.init_from, model.config(), parameters, flat);
  } else {
    fill_initial_values(
        parameters, flat,
        {.kind = keys.init == Init::reference ? InitialValues::reference : InitialValues::normal,
         .initializer_range = run.architecture.initializer_range,
         .seed = static_cast<uint64_t>(run.config.training.seed)});
  }
}

TrainState begin(const Run& run, const Gradients& gradients, const Llama& model,
                 ShardedOptimizer& optimizer) {
  TrainState state{.global_batch_size = global_batch_size(run.config), .data = run.data};
  if (!run.start) return state;
  state = run.start->state.train;
  state.data = run.data;
  const auto parts = parts_within(model.parameters(), gradients.owned());
  for (const ShardedTensors& tensors : state_of(model, optimizer)) {
    if (tensors.folder == kMaster) continue;  // they are the first values already
    if (fs::is_directory(run.start->checkpoint / tensors.folder)) {
      read_sharded(run.start->checkpoint, huggingface_tensors(model.config()), tensors, parts);
      continue;
    }
    state.updates = 0;
    log::warn(fmt::format("{} has no {}: it begins at zero", run.start->checkpoint.string(),
                          tensors.folder));
  }
  return state;
}

namespace {

// What lies beside the weights: the configuration, and the tokenizer's own files or its name.
std::map<std::string, std::string> model_files(const Run& run, const LlamaConfig& config,
                                               DType stored) {
  const auto tokenizer = files_of_tokenizer(run.tokenizer);
  auto files = huggingface_texts(config, stored, tokenizer.empty() ? run.tokenizer : "");
  for (const auto& [name, file] : tokenizer) files[name] = read_text_file(file);
  return files;
}

}  // namespace

std::unique_ptr<CheckpointSaver> make_saver(const Run& run, const Rendezvous& rendezvous,
                                            const Gradients& gradients, const Llama& model,
                                            const ShardedOptimizer& optimizer) {
  if (run.rehearsal) return nullptr;
  const Checkpoint& keys = run.config.checkpoint;
  Group world = make_cpu_world(rendezvous, "checkpoint", keys.async);
  on_rank(0, world, [&] {
    for (const std::string& sentence : clear_the_way(keys.save_dir, run.start))
      log::print(sentence);
  });
  std::vector<ShardedTensors> tensors = {weights_of(model)};
  for (ShardedTensors& state : state_of(model, optimizer)) tensors.push_back(std::move(state));
  const DType stored = run.dtype == at::kBFloat16 ? DType::bfloat16 : DType::float32;
  return std::make_unique<CheckpointSaver>(
      SaverOptions{.save_dir = keys.save_dir,
                   .keep_last = keys.keep_last,
                   .async = keys.async,
                   .model_files = model_files(run, model.config(), stored)},
      std::move(world), huggingface_tensors(model.config()), std::move(tensors),
      parts_within(model.parameters(), gradients.my_parts()));
}

void advance(TrainState& state, const Config& config) {
  ++state.step;
  ++state.updates;
  state.trained_tokens += tokens_per_step(config);
  state.data.position += global_batch_size(config);
}

CheckpointState describe_state(const Run& run, const TrainState& state) {
  return {.train = state,
          .layout = layout_text(run.config),
          .dtype = c10::toString(run.dtype),
          .optimizer = run.config.training.optimizer == OptimizerKind::sgd ? "sgd" : "adamw",
          .program = std::string(program_version()),
          .config = nlohmann::ordered_json::parse(to_json(run.config)),
          .files = {}};
}

}  // namespace picotron
