// Where the collectives of linear layers stand: one line forward, one line backward.
#include "parallel/tensor_parallel.h"

#include <ATen/ATen.h>

#include <utility>

#include "core/error.h"
#include "core/record.h"
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

// Rows of a column-parallel output that are here. Heads that several ranks hold are cut over the
// first of each such neighbours; each has a part of their gradient, having a part of the queries.
Parameter column_shard(Parameter parameter, const Output& output, const TensorParallel& tp) {
  const Group& ranks = *tp.group;
  const int sharing = output.key_value ? tp.key_value->size() : 1;
  const int64_t parts = ranks.size() / sharing, part = ranks.rank / sharing;
  parameter.shard = {0, part_begin(output.size, parts, part),
                     part_begin(output.size, parts, part + 1)};
  if (sharing > 1) {
    parameter.counts_in_norm = tp.key_value->rank == 0;
    parameter.partial_over = tp.key_value;
  }
  return parameter;
}

}  // namespace

Pending TensorParallel::gather(const at::Tensor& x, At at) const {
  if (!sequence_parallel) return {x, Work()};
  const int64_t mine = x.size(0), first = group->rank * mine;
  const at::Tensor all = at::empty({group->size() * mine, x.size(1)}, x.options());
  all.narrow(0, first, mine).copy_(x);
  return {all, all_gather(all.view({-1}), *group, at)};
}

Pending TensorParallel::reduce(const at::Tensor& x, At at) const {
  if (!sequence_parallel) return {x, all_reduce(x, *group, at)};
  check(x.size(0) % group->size() == 0, "sequence parallel: tp divides the tokens", at);
  const int64_t mine = x.size(0) / group->size();
  return {x.narrow(0, group->rank * mine, mine), reduce_scatter(x.view({-1}), *group, at)};
}

Shard shard_of(int64_t dim, int64_t size, const Group& tp) {
  return {dim, part_begin(size, tp.size(), tp.rank), part_begin(size, tp.size(), tp.rank + 1)};
}

ColumnParallelLinear ColumnParallelLinear::declare(Parameters& parameters,
                                                   const std::string& prefix,
                                                   const std::vector<Output>& outputs, int64_t in,
                                                   bool has_bias, const TensorParallel& tp) {
  std::vector<Parameter> weights, biases;
  for (const Output& output : outputs) {
    const std::string name = prefix + output.name;
    weights.push_back(column_shard(
        {.name = name + ".weight", .full_shape = {output.size, in}, .fan_in = in}, output, tp));
    biases.push_back(column_shard(
        {.name = name + ".bias", .full_shape = {output.size}, .role = Role::bias, .fan_in = in},
        output, tp));
  }
  Weight* weight = parameters.declare(std::move(weights));
  return {weight, has_bias ? parameters.declare(std::move(biases)) : nullptr, tp};
}

at::Tensor ColumnParallelLinear::forward(const at::Tensor& x) const {
  const record::About about(weight->index);
  at::Tensor y = linear_forward(tp.gather(x).wait(), weight->value);
  add_bias(y, bias);
  return y;
}

at::Tensor ColumnParallelLinear::backward(const at::Tensor& dy, const at::Tensor& x,
                                          Gradients& gradients) const {
  const record::About about(weight->index);
  Pending all_x = tp.gather(x);
  Pending dx = tp.reduce(linear_input_gradient(dy, weight->value));
  gradients.accumulate(*weight, dy, all_x.wait());
  accumulate_bias(bias, dy, gradients);
  return dx.wait();
}

RowParallelLinear RowParallelLinear::declare(Parameters& parameters, const std::string& name,
                                             int64_t out, int64_t in, bool has_bias,
                                             const TensorParallel& tp) {
  Weight* weight = parameters.declare({{.name = name + ".weight",
                                        .full_shape = {out, in},
                                        .shard = shard_of(1, in, *tp.group),
                                        .fan_in = in}});
  Weight* bias = !has_bias ? nullptr
                           : parameters.declare({{.name = name + ".bias",
                                                  .full_shape = {out},
                                                  .shard = {0, 0, out},
                                                  .role = Role::bias,
                                                  .fan_in = in,
                                                  .counts_in_norm = tp.group->rank == 0,
                                                  .partial_over = tp.partial()}});
  return {weight, bias, tp};
}

at::Tensor RowParallelLinear::forward(const at::Tensor& x) const {
  const record::About about(weight->index);
  at::Tensor y = tp.reduce(linear_forward(x, weight->value)).wait();
  add_bias(y, bias);
  return y;
}

at::Tensor RowParallelLinear::backward(const at::Tensor& dy, const at::Tensor& x,
                                       Gradients& gradients) const {
  const record::About about(weight->index);
  const at::Tensor all_dy = tp.gather(dy).wait();
  at::Tensor dx = linear_input_gradient(all_dy, weight->value);
  gradients.accumulate(*weight, all_dy, x);
  accumulate_bias(bias, dy, gradients);
  return dx;
}

Norm Norm::declare(Parameters& parameters, const std::string& name, int64_t hidden, double eps,
                   Body body, const TensorParallel& tp) {
  return {parameters.declare({{.name = name + ".weight",
                               .full_shape = {hidden},
                               .shard = {0, 0, hidden},
                               .role = Role::norm,
                               .counts_in_norm = tp.group->rank == 0,
                               .partial_over = tp.partial()}}),
          eps, body};
}

AddNormOutput Norm::forward(const at::Tensor& x, const at::Tensor& delta) const {
  if (delta.defined()) return add_rms_norm(x, delta, weight->value, eps, body);
  auto [y, rstd] = rms_norm(x, weight->value, eps, body);
  return {x, y, rstd};
}

at::Tensor Norm::backward(const at::Tensor& dy, const AddNormOutput& out,
                          const at::Tensor& residual_gradient, Gradients& gradients) const {
  const record::About about(weight->index);
  at::Tensor dx = rms_norm_backward(dy, out.sum, out.rstd, weight->value, residual_gradient,
                                    gradients.sum(*weight), body);
  gradients.contributed(*weight);
  return dx;
}

}  // namespace picotron
