// Where the collectives of linear layers stand: one line forward, one line backward.
#include "parallel/tensor_parallel.h"

#include <ATen/ATen.h>

#include <utility>

#include "kernels/matmul.h"

namespace picotron {
namespace {

void add_bias(const at::Tensor& y, const Weight* bias) {
  if (bias != nullptr) y.add_(bias->value);
}

void accumulate_bias(const Weight* bias, const at::Tensor& dy, Gradients& gradients) {
  if (bias == nullptr) return;
  gradients.sum(*bias).add_(dy.sum(0, /*keepdim=*/false, bias->gradient.scalar_type()));
  gradients.contributed(*bias);
}

Parameter bias_of(const std::string& name, int64_t size, int64_t fan_in, Shard shard,
                  bool counts_in_norm) {
  return {.name = name + ".bias",
          .full_shape = {size},
          .shard = shard,
          .role = Role::bias,
          .fan_in = fan_in,
          .counts_in_norm = counts_in_norm};
}

}  // namespace

Shard shard_of(int64_t dim, int64_t size, const Group& tp) {
  return {dim, part_begin(size, tp.size(), tp.rank), part_begin(size, tp.size(), tp.rank + 1)};
}

ColumnParallelLinear ColumnParallelLinear::declare(Parameters& parameters,
                                                   const std::string& prefix,
                                                   const std::vector<Output>& outputs, int64_t in,
                                                   bool has_bias, const Group& tp) {
  std::vector<Parameter> weights, biases;
  for (const auto& [name, size] : outputs) {
    weights.push_back({.name = prefix + name + ".weight",
                       .full_shape = {size, in},
                       .shard = shard_of(0, size, tp),
                       .fan_in = in});
    biases.push_back(bias_of(prefix + name, size, in, shard_of(0, size, tp), true));
  }
  Weight* weight = parameters.declare(std::move(weights));
  return {weight, has_bias ? parameters.declare(std::move(biases)) : nullptr, &tp};
}

at::Tensor ColumnParallelLinear::forward(const at::Tensor& x) const {
  at::Tensor y = linear_forward(x, weight->value);
  add_bias(y, bias);
  return y;
}

at::Tensor ColumnParallelLinear::backward(const at::Tensor& dy, const at::Tensor& x,
                                          Gradients& gradients) const {
  at::Tensor dx = linear_input_gradient(dy, weight->value);
  Work reduction = all_reduce(dx, *tp);
  gradients.accumulate(*weight, dy, x);
  accumulate_bias(bias, dy, gradients);
  reduction.wait();
  return dx;
}

RowParallelLinear RowParallelLinear::declare(Parameters& parameters, const std::string& name,
                                             int64_t out, int64_t in, bool has_bias,
                                             const Group& tp) {
  Weight* weight = parameters.declare({{.name = name + ".weight",
                                        .full_shape = {out, in},
                                        .shard = shard_of(1, in, tp),
                                        .fan_in = in}});
  const bool counts = tp.rank == 0;  // every rank holds the whole bias
  return {weight,
          has_bias ? parameters.declare({bias_of(name, out, in, {0, 0, out}, counts)}) : nullptr,
          &tp};
}

at::Tensor RowParallelLinear::forward(const at::Tensor& x) const {
  at::Tensor y = linear_forward(x, weight->value);
  all_reduce(y, *tp).wait();
  add_bias(y, bias);
  return y;
}

at::Tensor RowParallelLinear::backward(const at::Tensor& dy, const at::Tensor& x,
                                       Gradients& gradients) const {
  at::Tensor dx = linear_input_gradient(dy, weight->value);
  gradients.accumulate(*weight, dy, x);
  accumulate_bias(bias, dy, gradients);
  return dx;
}

Norm Norm::declare(Parameters& parameters, const std::string& name, int64_t hidden, double eps,
                   Body body, const Group& tp) {
  return {parameters.declare({{.name = name + ".weight",
                               .full_shape = {hidden},
                               .shard = {0, 0, hidden},
                               .role = Role::norm,
                               .counts_in_norm = tp.rank == 0}}),
          eps, body};
}

AddNormOutput Norm::forward(const at::Tensor& x, const at::Tensor& delta) const {
  if (delta.defined()) return add_rms_norm(x, delta, weight->value, eps, body);
  auto [y, rstd] = rms_norm(x, weight->value, eps, body);
  return {x, y, rstd};
}

at::Tensor Norm::backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd,
                          const at::Tensor& residual_gradient, Gradients& gradients) const {
  at::Tensor dx = rms_norm_backward(dy, x, rstd, weight->value, residual_gradient,
                                    gradients.sum(*weight), body);
  gradients.contributed(*weight);
  return dx;
}

}  // namespace picotron
