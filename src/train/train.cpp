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
#include "train/health.h"
#include "train/layout.h"
#include "train/learning_rate.h"
#include "train/metrics.h"
#include "train/optimizer.h"

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
  // [2 + axes] fp64, sums over the world: the mean loss, how many ranks were asked to stop, and
  // the bytes they sent on each axis.
  at::Tensor sums;
  at::Tensor norm;  // 0-dim fp64, before clipping
};

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
      return at::tensor(values, at::kLong).to(at::TensorOptions(device), /*non_blocking=*/true);
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
  const Schedule forwards = schedule_of_stage(run.config, mesh.my.pp, /*forward_only=*/true);
  const at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(device));
  for (int64_t i = 0; i < batches; ++i)
    loss.add_(run_forward(forwards, model, next_batches(loader, i, device), mesh));
  all_reduce(loss, mesh.world).wait();
  return loss.item<double>() /
         static_cast<double>(batches * tokens_per_step(run.config) * mesh.sizes.tp);
}

// Writes <save_dir>/<step>/model, a Hugging Face folder, and returns the step's folder.
std::string save_model(const Llama& model, const Run& run, const Mesh& mesh, int64_t step) {
  const std::string folder = fmt::format("{}/{}", run.config.checkpoint.save_dir, step);
  if (mesh.global_rank == 0) set_aside(folder);
  const DType stored = run.dtype == at::kBFloat16 ? DType::bfloat16 : DType::float32;
  save_huggingface(folder + "/model", model.config(), model.parameters(), model.parameters().flat(),
                   mesh, {.dtype = stored, .tokenizer = run.tokenizer});
  barrier(mesh.world);
  return folder;
}

// What ranks know alone becomes everybody's, at the same step: the loss of the last stages, whether
// a signal asked this one to stop, and what each has sent.
at::Tensor sum_over_world(const at::Tensor& loss, const record::Bytes& bytes_before,
                          const Mesh& mesh) {
  // Filled on the device: a copy from here would wait for it.
  const auto on_device = [&](double value) { return at::full_like(loss, value); };
  std::vector<at::Tensor> mine = {loss, on_device(stop_requested() ? 1 : 0)};
  for (const int64_t bytes : record::bytes_sent_since(bytes_before))
    mine.push_back(on_device(static_cast<double>(bytes)));
  const at::Tensor sums = at::stack(mine);
  all_reduce(sums, mesh.world).wait();
  return sums;
}

// Waits for the device. Every rank reads the same numbers.
StepMetrics read(const StepResult& result, const Training& training, int64_t tokens_per_step) {
  const at::Tensor sums = result.sums.to(at::kCPU);
  record::Bytes bytes{};
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<int64_t>(sums[static_cast<int64_t>(2 + i)].item<double>());
  return {.step = result.step,
          .loss = sums[0].item<double>(),
          .grad_norm = result.norm.item<double>(),
          .learning_rate = learning_rate(training, result.step),
          .trained_tokens = result.step * tokens_per_step,
          .tokens_per_step = tokens_per_step,
          .bytes = bytes};
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

TrainResult train(const Run& run, const Rendezvous& rendezvous, const Device& device,
                  const TrainObserver& observer) {
  const Config& config = run.config;
  const Training& training = config.training;
  const at::NoGradGuard backward_is_written_out;

  const Mesh mesh =
      make_mesh(axis_sizes(config), rendezvous, mesh_options(config, run.architecture));
  Llama model(run.architecture, mesh, llama_options(run, mesh.my.pp, device.torch()));
  Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world,
                      {.zero_stage = static_cast<int>(config.distributed.zero_stage)});
  const bool fuses = config.kernels.fused && config.model.use_fused_adam;
  // The gradient buffer, unused until the first step, has the masters' layout and precision.
  fill_values(gradients.flat(), model, run);
  model.parameters().flat().copy_(gradients.flat());
  ShardedOptimizer optimizer(model.parameters(), gradients, gradients.flat(), training,
                             fuses ? Body::fused : Body::plain);
  const Schedule schedule = schedule_of_stage(config, mesh.my.pp);
  const BatchLoader batches = make_loader(run, mesh, *run.datasets.train, config.dataset.shuffle);
  RunLog log(run, device, last_step(config));

  const int64_t tokens = tokens_per_step(config);
  const double scale = 1 / static_cast<double>(tokens);
  int64_t step = 0;  // steps done
  bool stopping = false;
  LossHistory losses;
  at::Tensor factor = at::zeros({}, gradients.flat().options());
  Stopwatch watch;  // a step lasts from the reading of the one before to its own reading
  std::deque<StepResult> in_flight;
  while (step < last_step(config) && !stopping) {
    const record::Bytes bytes_before = record::bytes_sent();
    if (const auto epoch = batches.epoch_begun(step)) log.say_epoch(*epoch);
    const std::vector<TokenBatch> microbatches = next_batches(batches, step++, device.torch());
    const StepView view{step, model, gradients, mesh};

    const at::Tensor loss = run_schedule(schedule, model, microbatches, scale, gradients, mesh);
    if (observer.after_backward) observer.after_backward(view);
    const at::Tensor norm = gradients.norm(loss);
    // Once NaN, always NaN: after a step that is not finite no update changes anything.
    factor = clip_factor(norm, training.grad_clip, factor.scalar_type()) + 0 * factor;
    check_replicas(step, run, mesh, model.parameters());
    optimizer.step(step, learning_rate(training, step), factor);
    if (observer.after_update) observer.after_update(view);
    in_flight.push_back({step, sum_over_world(loss / mesh.sizes.tp, bytes_before, mesh), norm});

    const bool last = step == last_step(config);
    const bool evaluates =
        training.eval_interval > 0 && (last || step % training.eval_interval == 0);
    const size_t may_stay = device.is_cpu() || evaluates || last ? 0 : 1;
    for (; in_flight.size() > may_stay; in_flight.pop_front()) {
      StepMetrics metrics = read(in_flight.front(), training, tokens);
      if (!is_finite(metrics))
        stop_at({.metrics = metrics,
                 .batches = next_batches(batches, metrics.step - 1, device.torch()),
                 .overwritten = metrics.step < step},
                run, mesh, model, gradients);
      metrics.loss_spike = note_loss(losses, metrics.loss);
      metrics.step_seconds = watch.lap();
      metrics.memory_bytes = device.peak_memory_bytes();
      if (evaluates && metrics.step == step)
        metrics.validation_loss = validate(model, run, mesh, device.torch());
      stopping = stopping || in_flight.front().sums[1].item<double>() > 0;
      log.write(metrics);
      if (observer.after_reading) observer.after_reading(metrics);
      if (evaluates) watch.lap();
    }
  }

  if (run.rehearsal) return {.stopped = stopping, .folder = ""};
  const std::string folder = save_model(model, run, mesh, step);
  log.summary(folder, stopping);
  return {stopping, folder};
}

}  // namespace picotron
