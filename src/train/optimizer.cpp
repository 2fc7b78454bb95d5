// Cuts what this rank owns into runs of one weight decay, and updates run by run.
#include "train/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "core/record.h"
#include "kernels/adamw.h"

namespace picotron {

ShardedOptimizer::ShardedOptimizer(Parameters& parameters, const Gradients& gradients,
                                   const at::Tensor& initial, const Training& training, Body body)
    : parameters_(parameters), gradients_(gradients), training_(training), body_(body) {
  int64_t state_numel = 0;
  for (const Range& range : gradients.owned()) {
    bool joins = false;  // the segment before is of the same range and touches this one
    for (const Weight& weight : parameters.weights()) {
      const Range flat{std::max(range.begin, weight.offset), std::min(range.end, weight.end)};
      if (flat.size() <= 0) continue;
      const bool decays = training.weight_decay_on == WeightDecayOn::all || weight.value.dim() > 1;
      const double weight_decay = decays ? training.weight_decay : 0.0;
      if (joins && segments_.back().weight_decay == weight_decay) {
        segments_.back().flat.end = flat.end;
      } else {
        segments_.push_back({flat, state_numel, weight_decay});
      }
      state_numel += flat.size();
      joins = true;
    }
  }
  const at::TensorOptions options = gradients.flat().options();
  if (parameters.flat().scalar_type() != gradients.flat().scalar_type()) {
    master_ = at::empty({state_numel}, options);
    for (const Segment& segment : segments_) {
      master_.narrow(0, segment.state_offset, segment.flat.size())
          .copy_(initial.narrow(0, segment.flat.begin, segment.flat.size()));
    }
  }
  if (training.optimizer == OptimizerKind::adamw) {
    m_ = at::zeros({state_numel}, options);
    v_ = at::zeros({state_numel}, options);
  }
}

void ShardedOptimizer::step(int64_t step, double learning_rate, const at::Tensor& clip_factor) {
  for (const Segment& segment : segments_) {
    const auto of_flat = [&](const at::Tensor& flat) {
      return flat.narrow(0, segment.flat.begin, segment.flat.size());
    };
    const auto of_state = [&](const at::Tensor& state) {
      return state.narrow(0, segment.state_offset, segment.flat.size());
    };
    const at::Tensor value = of_flat(parameters_.flat());
    const at::Tensor master = master_.defined() ? of_state(master_) : value;
    const at::Tensor copy = master_.defined() ? value : at::Tensor();
    const at::Tensor gradient = of_flat(gradients_.flat());
    const bool is_sgd = training_.optimizer == OptimizerKind::sgd;
    const record::Scope scope({.kind = record::Kind::optimizer,
                               .what = is_sgd ? "sgd" : "adamw",
                               .shape = {segment.flat.size()}});
    if (is_sgd) {
      sgd_(master, gradient, copy, clip_factor, learning_rate, segment.weight_decay, body_);
    } else {
      adamw_(master, of_state(m_), of_state(v_), gradient, copy, clip_factor,
             {.learning_rate = learning_rate,
              .beta1 = training_.adam_beta1,
              .beta2 = training_.adam_beta2,
              .eps = training_.adam_eps,
              .weight_decay = segment.weight_decay,
              .step = step},
             body_);
    }
  }
  gradients_.gather_values(parameters_.flat());
}

int64_t ShardedOptimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const State& state : states()) bytes += static_cast<int64_t>(state.values.nbytes());
  return bytes;
}

std::vector<ShardedOptimizer::State> ShardedOptimizer::states() const {
  std::vector<State> all = {{"master", master_}, {"exp_avg", m_}, {"exp_avg_sq", v_}};
  std::erase_if(all, [](const State& state) { return !state.values.defined(); });
  return all;
}

at::Tensor ShardedOptimizer::within(const at::Tensor& state, int64_t begin, int64_t numel) const {
  for (const Segment& segment : segments_) {
    if (begin < segment.flat.begin || begin + numel > segment.flat.end) continue;
    return state.narrow(0, segment.state_offset + begin - segment.flat.begin, numel);
  }
  throw BrokenInvariant("the elements of a state are owned, and of one weight decay");
}

at::Tensor clip_factor(const at::Tensor& norm, double max_norm, at::ScalarType dtype) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor factor =
      max_norm > 0 ? (max_norm / (norm + 1e-6)).clamp_max(1.0) : at::ones_like(norm);
  return at::where(norm.isfinite(), factor, at::full_like(norm, nan)).to(dtype);
}

}  // namespace picotron
