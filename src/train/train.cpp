// The loop, and what it needs of the rooms below put into its words: sizes, batches, first values,
// validation, the checkpoint at the end. train() is the screen to read.
#include "train/train.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <limits>
#include <utility>

#include "checkpoint/huggingface.h"
#include "core/error.h"
#include "core/log.h"
#include "data/loader.h"
#include "dist/collectives.h"
#include "dist/device.h"
#include "dist/launch.h"
#include "model/initial_values.h"
#include "model/llama.h"
#include "train/learning_rate.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/samples.h"

namespace picotron {
namespace {

// Seconds since the last lap.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// What a step leaves on the device. On a GPU it is read one step late, so that the host never
// waits.
struct StepResult {
  int64_t step = 0;  // from 1
  // [2] fp64, sums over the world: the mean loss, and how many ranks were asked to stop.
  at::Tensor loss_and_stop;
  at::Tensor norm;        // 0-dim fp64, before clipping
  record::Bytes bytes{};  // sent, by axis
};

AxisSizes axis_sizes(const Config& config) {
  const Distributed& d = config.distributed;
  return {static_cast<int>(d.dp_size), static_cast<int>(d.pp_size), static_cast<int>(d.cp_size),
          static_cast<int>(d.tp_size)};
}

Schedule make_schedule(const Config& config, const Mesh& mesh) {
  const int64_t microbatches = gradient_accumulation_steps(config);
  if (config.distributed.pp_engine == PpEngine::afab) return all_forward_all_backward(microbatches);
  return one_forward_one_backward(mesh.my.pp, mesh.sizes.pp, microbatches);
}

BatchLoader make_loader(const Run& run, const Mesh& mesh, const Dataset& dataset, bool shuffle) {
  return BatchLoader(dataset, {.global_batch_size = global_batch_size(run.config),
                               .micro_batch_size = run.config.training.micro_batch_size,
                               .dp_rank = mesh.my.dp,
                               .dp_size = mesh.sizes.dp,
                               .cp_rank = mesh.my.cp,
                               .cp_size = mesh.sizes.cp,
                               .seed = static_cast<uint64_t>(run.config.training.seed),
                               .shuffle = shuffle,
                               .vocab_size = run.architecture.vocab_size});
}

std::vector<TokenBatch> next_batches(const BatchLoader& loader, int64_t step, at::Device device) {
  std::vector<TokenBatch> batches;
  for (const Microbatch& m : loader.next(step)) {
    const auto on_device = [&](const std::vector<int64_t>& values) {
      return at::tensor(values, at::kLong).to(device);
    };
    batches.push_back({m.rows, m.columns, on_device(m.input_ids), on_device(m.target_ids),
                       on_device(m.position_ids).repeat({m.rows})});
  }
  return batches;
}

// The first values of this rank's part, in full precision, into a buffer of the layout of
// parameters.flat().
void fill_values(const at::Tensor& flat, const Llama& model, const Run& run) {
  const ModelKeys& keys = run.config.model;
  if (keys.init_from) {
    load_huggingface(*keys.init_from, model.config(), model.parameters(), flat);
    return;
  }
  fill_initial_values(
      model.parameters(), flat,
      {.kind = keys.init == Init::reference ? InitialValues::reference : InitialValues::normal,
       .initializer_range = run.architecture.initializer_range,
       .seed = static_cast<uint64_t>(run.config.training.seed)});
}

// Mean loss over the first global batches of the validation set: as many as eval_steps says, or as
// there are. Every rank evaluates the same number of them.
double validate(Llama& model, const Run& run, const Mesh& mesh, at::Device device) {
  const BatchLoader loader = make_loader(run, mesh, *run.datasets.validation, /*shuffle=*/false);
  const int64_t whole_batches = run.datasets.validation->num_rows() / global_batch_size(run.config);
  const int64_t batches =
      std::min(run.config.training.eval_steps, std::max<int64_t>(whole_batches, 1));
  const at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(device));
  for (int64_t i = 0; i < batches; ++i) {
    for (const TokenBatch& batch : next_batches(loader, i, device))
      loss.add_(model.evaluate(batch));
  }
  all_reduce(loss, mesh.world).wait();
  return loss.item<double>() /
         static_cast<double>(batches * tokens_per_step(run.config) * mesh.sizes.tp);
}

// Writes <save_dir>/<step>/model, a Hugging Face folder, and returns the step's folder. Every rank
// has all values.
std::string save_model(Llama& model, const Run& run, const Mesh& mesh, int64_t step) {
  const std::string folder = fmt::format("{}/{}", run.config.checkpoint.save_dir, step);
  if (mesh.global_rank == 0) {
    set_aside(folder);
    const DType stored = run.dtype == at::kBFloat16 ? DType::bfloat16 : DType::float32;
    save_huggingface(folder + "/model", model.config(), model.parameters(),
                     {.dtype = stored, .tokenizer = run.tokenizer});
  }
  barrier(mesh.world);
  return folder;
}

// Waits for the device. Every rank reads the same numbers. RunError where they are not finite: the
// optimizer has then changed nothing.
StepMetrics read(const StepResult& result, const Training& training, int64_t tokens_per_step) {
  const double loss = result.loss_and_stop[0].item<double>(), norm = result.norm.item<double>();
  if (!std::isfinite(loss) || !std::isfinite(norm)) {
    const auto text = [](double value) {
      return std::isnan(value) ? "NaN" : fmt::format("{:.4g}", value);
    };
    throw run_error(
        "step {}: loss {} and gradient norm {}; a lower training.learning_rate or "
        "training.grad_clip 1.0 may help",
        result.step, text(loss), text(norm));
  }
  return {.step = result.step,
          .loss = loss,
          .grad_norm = norm,
          .learning_rate = learning_rate(training, result.step),
          .trained_tokens = result.step * tokens_per_step,
          .tokens_per_step = tokens_per_step,
          .bytes = result.bytes};
}

// The first step number after which nothing is left to do.
int64_t last_step(const Config& config) {
  const int64_t tokens = tokens_per_step(config);
  const int64_t by_tokens = config.training.max_tokens
                                ? (*config.training.max_tokens + tokens - 1) / tokens
                                : std::numeric_limits<int64_t>::max();
  return std::min(config.training.total_train_steps, by_tokens);
}

}  // namespace

bool train(const Run& run, const Rendezvous& rendezvous, const Device& device,
           const TrainObserver& observer) {
  const Config& config = run.config;
  const Training& training = config.training;
  const at::NoGradGuard backward_is_written_out;
  const Body body = config.kernels.fused ? Body::fused : Body::plain;

  const Mesh mesh = make_mesh(axis_sizes(config), rendezvous, config.distributed.mesh_order);
  Llama model(run.architecture, mesh,
              {at::TensorOptions(run.dtype).device(device.torch()), training.seq_length, body});
  Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world,
                      {.zero_stage = static_cast<int>(config.distributed.zero_stage)});
  // The gradient buffer, unused until the first step, has the masters' layout and precision.
  fill_values(gradients.flat(), model, run);
  model.parameters().flat().copy_(gradients.flat());
  ShardedOptimizer optimizer(model.parameters(), gradients, gradients.flat(), training,
                             config.model.use_fused_adam ? body : Body::plain);
  const Schedule schedule = make_schedule(config, mesh);
  const BatchLoader batches = make_loader(run, mesh, *run.datasets.train, config.dataset.shuffle);
  RunLog log(run, device, last_step(config));

  const int64_t tokens = tokens_per_step(config);
  const double scale = 1 / static_cast<double>(tokens);
  int64_t step = 0;  // steps done
  bool stopping = false;
  Stopwatch watch;  // a step lasts from the reading of the one before to its own reading
  std::deque<StepResult> in_flight;
  while (step < last_step(config) && !stopping) {
    const record::Bytes bytes_before = record::bytes_sent();
    if (const auto epoch = batches.epoch_begun(step)) log.say_epoch(*epoch);
    const std::vector<TokenBatch> microbatches = next_batches(batches, step++, device.torch());

    const at::Tensor loss = run_schedule(schedule, model, microbatches, scale, gradients);
    if (observer.after_backward) observer.after_backward(step, model.parameters(), gradients);
    const at::Tensor norm = gradients.norm();
    const at::Tensor factor = clip_factor(norm, training.grad_clip, gradients.flat().scalar_type());
    optimizer.step(step, learning_rate(training, step), factor);

    // What one rank knows alone (a signal) becomes everybody's in the loss's own reduction, at the
    // same step.
    const at::Tensor loss_and_stop =
        at::stack({loss / mesh.sizes.tp, at::full_like(loss, stop_requested() ? 1.0 : 0.0)});
    all_reduce(loss_and_stop, mesh.world).wait();
    in_flight.push_back({step, loss_and_stop, norm, record::bytes_sent_since(bytes_before)});

    const bool last = step == last_step(config);
    const bool evaluates =
        training.eval_interval > 0 && (last || step % training.eval_interval == 0);
    const size_t may_stay = device.is_cpu() || evaluates || last ? 0 : 1;
    for (; in_flight.size() > may_stay; in_flight.pop_front()) {
      StepMetrics metrics = read(in_flight.front(), training, tokens);
      metrics.step_seconds = watch.lap();
      metrics.memory_bytes = device.peak_memory_bytes();
      if (evaluates && metrics.step == step)
        metrics.validation_loss = validate(model, run, mesh, device.torch());
      stopping = stopping || in_flight.front().loss_and_stop[1].item<double>() > 0;
      log.write(metrics);
      if (evaluates) watch.lap();
    }
  }

  if (observer.at_end) observer.at_end(model.parameters());
  const std::string folder = save_model(model, run, mesh, step);
  log.summary(folder, stopping);
  if (mesh.global_rank == 0) show_samples(model, run);
  return stopping;
}

}  // namespace picotron
