// A run that can be looked into, for tests/parity/*.py: the loop of `picotron train`, started in
// the same three ways (as one of torchrun's ranks, as processes of its own, as threads), which also
// writes what metrics.jsonl cannot hold.
//
//   parity_probe train CONFIG OUT STEPS     STEPS: "1,20", or "-" for none
//       OUT/gradients-S.safetensors         after step S, before clipping: every gradient, summed
//                                           over the ranks and whole, under its Hugging Face name
//       OUT/weights.safetensors             after the last step, of any layout
//   parity_probe logits MODEL TOKENS OUT DTYPE
//       MODEL  a Hugging Face folder        TOKENS  a file with "ids", int64 [rows, columns]
//       OUT    a file with "logits" [rows, columns, vocab]
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoint/huggingface.h"
#include "checkpoint/safetensors.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/device.h"
#include "dist/launch.h"
#include "model/huggingface_config.h"
#include "model/llama.h"
#include "train/trace.h"
#include "train/train.h"

namespace {

using namespace picotron;

std::vector<int64_t> numbers(const std::string& list) {
  std::vector<int64_t> result;
  std::istringstream stream(list == "-" ? "" : list);
  for (std::string number; std::getline(stream, number, ',');) result.push_back(std::stoll(number));
  return result;
}

void write_tensors(const std::string& file, const std::map<std::string, at::Tensor>& tensors) {
  std::vector<TensorHeader> headers;
  for (const auto& [name, tensor] : tensors) {
    const bool wide = tensor.scalar_type() == at::kDouble;
    headers.push_back({name, wide ? StoredType::F64 : StoredType::F32, tensor.sizes().vec()});
  }
  at::Tensor kept;
  write_safetensors(file, headers, {}, [&](const TensorHeader& header) {
    const at::Tensor& tensor = tensors.at(header.name);
    kept = tensor.to(header.type == StoredType::F64 ? at::kDouble : at::kFloat).contiguous();
    return std::span(static_cast<const std::byte*>(kept.const_data_ptr()), kept.nbytes());
  });
}

int train_and_look(const std::string& config_file, const std::string& out, const std::string& steps,
                   const std::vector<std::string>& argv) {
  Config config = load_config(config_file);
  resolve_environment(config, [](const char* name) -> const char* { return std::getenv(name); });
  const Run run = prepare_run(config, /*on_gpu=*/false);
  const std::vector<int64_t> wanted = numbers(steps);
  std::filesystem::create_directories(out);

  const LaunchOptions options{
      .world_size = static_cast<int>(world_size(config)),
      .ranks = config.distributed.ranks,
      .timeout = std::chrono::seconds(static_cast<int64_t>(config.distributed.timeout_seconds)),
      .threads_per_rank = static_cast<int>(config.environment.OMP_NUM_THREADS.value_or(0)),
      .argv = argv};
  return launch(options, [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
    const auto device = open_device({.use_cpu = true, .local_rank = local_rank});
    Trace trace;
    train(run, rendezvous, *device, tracer(trace, config.training.total_train_steps));
    if (rendezvous.global_rank != 0) return 0;
    for (const int64_t step : wanted) {
      write_tensors(fmt::format("{}/gradients-{}.safetensors", out, step),
                    trace.steps.at(static_cast<size_t>(step - 1)).gradients);
    }
    write_tensors(out + "/weights.safetensors", trace.steps.back().weights);
    return 0;
  });
}

int write_logits(const std::string& folder, const std::string& tokens, const std::string& out,
                 const std::string& dtype) {
  const at::NoGradGuard no_grad;
  const SafetensorsFile file(tokens);
  const StoredTensor& stored = file.tensors().at("ids");
  at::Tensor ids = at::empty(stored.shape, at::kLong);
  std::memcpy(ids.data_ptr(), stored.bytes.data(), stored.bytes.size());
  const int64_t rows = ids.size(0), columns = ids.size(1);

  const LlamaConfig config = read_huggingface_config(folder);
  const Mesh alone = make_mesh({}, {});
  const at::ScalarType type = dtype == "float64"    ? at::kDouble
                              : dtype == "bfloat16" ? at::kBFloat16
                                                    : at::kFloat;
  Llama model(config, alone, {.tensors = type, .max_positions = columns});
  load_huggingface(folder, config, model.parameters());
  const at::Tensor states = model.normed_states({.rows = rows,
                                                 .columns = columns,
                                                 .ids = ids.view({-1}),
                                                 .targets = {},
                                                 .positions = at::arange(columns).repeat({rows})});
  write_tensors(out, {{"logits", model.head().logits(states).view({rows, columns, -1})}});
  return 0;
}

int run(const std::vector<std::string>& argv) {
  const std::string mode = argv.size() > 1 ? argv[1] : "";
  if (mode == "train" && argv.size() == 5) return train_and_look(argv[2], argv[3], argv[4], argv);
  if (mode == "logits" && argv.size() == 6) return write_logits(argv[2], argv[3], argv[4], argv[5]);
  throw user_error("usage: train CONFIG OUT STEPS | logits MODEL TOKENS OUT DTYPE");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv, argv + argc});
  } catch (const UserError& error) {
    log::error(error.what());
    return 2;
  } catch (const std::exception& error) {
    log::error(plain_sentence(error.what()));
    return 1;
  }
}
