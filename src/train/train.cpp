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
#include <utility>

#include "core/error.h"
#include "dist/collectives.h"
#include "dist/launch.h"
#include "train/batches.h"
#include "train/health.h"
#include "train/layout.h"
#include "train/learning_rate.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/save_clock.h"
#include "train/state.h"

namespace picotron {
namespace {

class Stopwatch {
 public:
  // Seconds since the last lap; of `laps` that end now, each an equal part of them.
  double lap(size_t laps = 1) {
    const auto part = (std::chrono::steady_clock::now() - last_) / laps;
    last_ += part;
    return std::chrono::duration<double>(part).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// What a step leaves on the device. On a GPU it is read one step late, so that the host never
// waits.
struct StepResult {
  int64_t step = 0, trained_tokens = 0;  // after it; steps from 1
  // [3 + axes] fp64, sums over the world: the mean loss, how many ranks were asked to stop, how
  // many find that it is time to save, and the bytes they sent on each axis.
  at::Tensor sums;
  at::Tensor norm;  // 0-dim fp64, before clipping
};

// What ranks know alone becomes everybody's, at the same step: the loss of the last stages, whether
// a signal asked this one to stop or its clock to save, and what each has sent.
at::Tensor sum_over_world(const at::Tensor& loss, bool save_is_due,
                          const record::Bytes& bytes_before, const Mesh& mesh) {
  // Filled on the device: a copy from here would wait for it.
  const auto on_device = [&](double value) { return at::full_like(loss, value); };
  std::vector<at::Tensor> mine = {loss, on_device(stop_requested() ? 1 : 0),
                                  on_device(save_is_due ? 1 : 0)};
  for (const int64_t bytes : record::bytes_sent_since(bytes_before))
    mine.push_back(on_device(static_cast<double>(bytes)));
  const at::Tensor sums = at::stack(mine);
  all_reduce(sums, mesh.world).wait();
  return sums;
}

constexpr size_t kFlags = 3;  // figures before the bytes

// Waits for the device. Every rank reads the same numbers.
StepMetrics read(const StepResult& result, const Training& training) {
  const at::Tensor sums = result.sums.to(at::kCPU);
  record::Bytes bytes{};
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<int64_t>(sums[static_cast<int64_t>(kFlags + i)].item<double>());
  return {.step = result.step,
          .loss = sums[0].item<double>(),
          .grad_norm = result.norm.item<double>(),
          .learning_rate = learning_rate(training, result.step),
          .trained_tokens = result.trained_tokens,
          .bytes = bytes,
          .stop_requests = sums[1].item<double>(),
          .save_requests = sums[2].item<double>()};
}

}  // namespace

TrainResult train(const Run& run, const Rendezvous& rendezvous, const Device& device,
                  const TrainObserver& observer) {
  const Config& config = run.config;
  const Training& training = config.training;
  const at::NoGradGuard backward_is_written_out;

  const Mesh mesh =
      make_mesh(axis_sizes(config), rendezvous, mesh_options(config, run.architecture));
  if (!run.rehearsal) heed_stops_after_a_step();
  check_start(run, mesh, device);
  Llama model(run.architecture, mesh, llama_options(run, mesh.my.pp, device.torch()));
  Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world,
                      {.zero_stage = static_cast<int>(config.distributed.zero_stage)});
  const bool fuses = config.kernels.fused && config.model.use_fused_adam;
  // The gradient buffer, unused until the first step, has the masters' layout and precision.
  fill_first_values(run, model, gradients.flat());
  model.parameters().flat().copy_(gradients.flat());
  ShardedOptimizer optimizer(model.parameters(), gradients, gradients.flat(), training,
                             fuses ? Body::fused : Body::plain);
  TrainState state = begin(run, gradients, model, optimizer);
  const auto saver = make_saver(run, rendezvous, gradients, model, optimizer);
  const Schedule schedule = schedule_of_stage(config, mesh.my.pp);
  const BatchLoader batches = training_loader(run, mesh, state.step);
  SaveClock clock(config.checkpoint, training.total_train_steps);

  const int64_t tokens = tokens_per_step(config);
  const double scale = 1 / static_cast<double>(tokens);
  const int64_t end = last_step(run);
  RunLog log(run, device, end);
  bool stopping = false;
  at::Tensor factor = at::zeros({}, gradients.flat().options());  // that clips the gradients
  Stopwatch watch;  // a step lasts from the reading of the one before to its own reading
  std::deque<StepResult> in_flight;
  while (state.step < end && !stopping) {
    const record::Bytes bytes_before = record::bytes_sent();
    if (const auto epoch = batches.epoch_begun(state.step)) log.say_epoch(*epoch);
    const std::vector<TokenBatch> microbatches = next_batches(batches, state.step, device.torch());
    advance(state, config);
    const StepView view{state.step, model, gradients, mesh};

    const at::Tensor loss = run_schedule(schedule, model, microbatches, scale, gradients, mesh);
    if (observer.after_backward) observer.after_backward(view);
    const at::Tensor norm = gradients.norm(loss);
    // Once NaN, always NaN: after a step that is not finite no update changes anything.
    factor = clip_factor(norm, training.grad_clip, factor.scalar_type()) + 0 * factor;
    check_replicas(state.step, run, mesh, model.parameters());
    optimizer.step(state.updates, learning_rate(training, state.step), factor);
    if (observer.after_update) observer.after_update(view);
    in_flight.push_back({state.step, state.trained_tokens,
                         sum_over_world(loss / mesh.sizes.tp, clock.is_due(), bytes_before, mesh),
                         norm});

    const bool last = state.step == end;
    const bool evaluates =
        training.eval_interval > 0 && (last || state.step % training.eval_interval == 0);
    bool saves = saver != nullptr && clock.saves(state.step, last);
    // What is decided on a step's sums is decided one step late on a GPU, by every rank alike.
    for (size_t may_stay = device.is_cpu() || evaluates || last || saves ? 0 : 1;
         in_flight.size() > may_stay; in_flight.pop_front()) {
      const size_t ready = in_flight.size() - may_stay;
      if (ready > 1) device.synchronize();  // the host was a step ahead: both end here
      StepMetrics metrics = read(in_flight.front(), training);
      metrics.tokens_per_step = tokens;
      if (!is_finite(metrics))
        stop_at({.metrics = metrics,
                 .batches = next_batches(batches, metrics.step - 1, device.torch()),
                 .overwritten = metrics.step < state.step},
                run, mesh, model, gradients);
      metrics.loss_spike = note_loss(state.loss, metrics.loss);
      stopping = stopping || metrics.stop_requests > 0;
      saves = saves || (saver != nullptr && (stopping || metrics.save_requests > 0));
      if (saves) may_stay = 0;
      metrics.step_seconds = watch.lap(ready);
      metrics.memory_bytes = device.peak_memory_bytes();
      if (evaluates && metrics.step == state.step) {
        metrics.validation_loss = validate(model, run, mesh, device.torch());
        watch.lap();
      }
      log.write(metrics);
      if (observer.after_reading) observer.after_reading(metrics);
    }
    if (saves) {
      log.sync();
      saver->save(describe_state(run, state));
      clock.saved();
      watch.lap();
    }
    if (saver != nullptr) log.write(saver->take_reports());
  }

  if (saver != nullptr) {
    saver->finish();
    log.write(saver->take_reports());
  }
  return {stopping, log.summary(stopping)};
}

}  // namespace picotron
