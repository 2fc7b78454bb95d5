// Gathering at two moments of each step; the file has "figures" (loss and norm of each),
// "initial.NAME", "2.gradient.NAME" and "2.weight.NAME".
#include "train/trace.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "checkpoint/huggingface.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/stored_types.h"
#include "core/error.h"

namespace picotron {
namespace {

constexpr std::string_view kInitial = "initial.", kGradient = "gradient.", kWeight = "weight.";

// Every tensor of a buffer of the parameters' layout, on rank 0.
Trace::Tensors gather(const at::Tensor& flat, const StepView& view, Trace& trace) {
  const auto shapes = huggingface_tensors(view.model.config());
  WholeTensors tensors(shapes, view.model.parameters(), flat, view.mesh);
  if (view.mesh.global_rank != 0) {
    tensors.serve();
    return {};
  }
  Trace::Tensors result;
  for (const auto& [name, shape] : shapes) {
    result[name] = tensors.whole(name).to(at::kCPU);
    trace.parts[name] = tensors.parts_of(name);
  }
  tensors.finish();
  return result;
}

}  // namespace

TrainObserver tracer(Trace& trace, int64_t detailed_steps) {
  return {.after_backward =
              [&trace, detailed_steps](const StepView& view) {
                if (view.mesh.global_rank == 0) trace.steps.emplace_back();
                if (view.step > detailed_steps) return;
                if (view.step == 1)
                  trace.initial = gather(view.model.parameters().flat(), view, trace);
                const at::Tensor sums = view.gradients.flat().clone();
                view.gradients.gather_values(sums);  // under ZeRO-1 a rank has those of its part
                Trace::Tensors all = gather(sums, view, trace);
                if (view.mesh.global_rank == 0) trace.steps.back().gradients = std::move(all);
              },
          .after_update =
              [&trace, detailed_steps](const StepView& view) {
                if (view.step > detailed_steps) return;
                Trace::Tensors all = gather(view.model.parameters().flat(), view, trace);
                if (view.mesh.global_rank == 0) trace.steps.back().weights = std::move(all);
              },
          .after_reading =
              [&trace](const StepMetrics& metrics) {
                if (trace.steps.empty()) return;
                Trace::Step& step = trace.steps.at(static_cast<size_t>(metrics.step - 1));
                step.loss = metrics.loss, step.grad_norm = metrics.grad_norm;
              }};
}

void write_trace(const std::filesystem::path& file, const Trace& trace) {
  Trace::Tensors all;
  const auto count = static_cast<int64_t>(trace.steps.size());
  const at::Tensor figures = all["figures"] = at::zeros({count, 2}, at::kDouble);
  for (int64_t i = 0; i < count; ++i) {
    const Trace::Step& step = trace.steps[static_cast<size_t>(i)];
    figures[i][0] = step.loss, figures[i][1] = step.grad_norm;
    for (const auto& [name, x] : step.gradients)
      all[fmt::format("{}.{}{}", i, kGradient, name)] = x;
    for (const auto& [name, x] : step.weights) all[fmt::format("{}.{}{}", i, kWeight, name)] = x;
  }
  for (const auto& [name, x] : trace.initial) all[fmt::format("{}{}", kInitial, name)] = x;
  std::vector<TensorHeader> headers;
  for (const auto& [name, x] : all)
    headers.push_back({name, stored_type(x.scalar_type()), x.sizes().vec()});
  write_safetensors(file, headers, {},
                    [&](const TensorHeader& header) { return bytes_of(all.at(header.name)); });
}

Trace read_trace(const std::filesystem::path& file) {
  const SafetensorsFile stored(file);
  const at::Tensor figures = view_of(stored.tensors().at("figures")).clone();
  Trace trace;
  for (int64_t i = 0; i < figures.size(0); ++i)
    trace.steps.push_back({.loss = figures[i][0].item<double>(),
                           .grad_norm = figures[i][1].item<double>(),
                           .gradients = {},
                           .weights = {}});
  for (const auto& [name, tensor] : stored.tensors()) {
    if (name == "figures") continue;
    if (name.starts_with(kInitial)) {
      trace.initial[name.substr(kInitial.size())] = view_of(tensor).clone();
      continue;
    }
    const size_t dot = name.find('.');
    Trace::Step& step = trace.steps.at(std::stoull(name.substr(0, dot)));
    const std::string rest = name.substr(dot + 1);
    if (rest.starts_with(kGradient)) {
      step.gradients[rest.substr(kGradient.size())] = view_of(tensor).clone();
    } else {
      step.weights[rest.substr(kWeight.size())] = view_of(tensor).clone();
    }
  }
  return trace;
}

}  // namespace picotron
