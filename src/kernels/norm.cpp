// Formulas and sources: norm.h; fused loops: cpu/norm_kernels.cpp.
// Here: the plain definitions, and the way from tensors to pointers and threads.
#include "kernels/norm.h"

#include <ATen/ATen.h>

#include "kernels/fused_call.h"

namespace picotron {
namespace {

NormOutput plain_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(statistic_dtype(x));
  const at::Tensor rstd = at::rsqrt(wide.square().mean(-1) + eps);
  return {(wide * rstd.unsqueeze(-1)).to(x.scalar_type()) * weight, rstd};
}

at::Tensor plain_rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                   const at::Tensor& rstd, const at::Tensor& weight,
                                   const at::Tensor& residual_gradient,
                                   const at::Tensor& weight_gradient) {
  const at::ScalarType wide = statistic_dtype(x);
  const at::Tensor r = rstd.unsqueeze(-1);
  const at::Tensor n = x.to(wide) * r;
  const at::Tensor g = dy.to(wide) * weight.to(wide);
  at::Tensor dx = r * (g - n * (g * n).mean(-1, /*keepdim=*/true));
  if (residual_gradient.defined()) dx = dx + residual_gradient.to(wide);
  weight_gradient.add_((dy.to(wide) * n).sum(0));
  return dx.to(x.scalar_type());
}

AddNormOutput fused_rms_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                             double eps) {
  check_like(x, x, {x.size(0), x.size(1)});
  check_like(weight, x, {x.size(1)});
  AddNormOutput out;
  if (delta.defined()) {
    check_like(delta, x, x.sizes());
    out.sum = at::empty_like(x);
  }
  out.y = at::empty_like(x);
  out.rstd = at::empty({x.size(0)}, x.options().dtype(statistic_dtype(x)));
  with_storage_type(x, [&](auto storage) {
    using S = decltype(storage);
    const fused::NormArguments<S> arguments = {.x = data_as<S>(x),
                                               .delta = data_as<S>(delta),
                                               .weight = data_as<S>(weight),
                                               .sum = data_as<S>(out.sum),
                                               .y = data_as<S>(out.y),
                                               .rstd = data_as<fused::Statistic<S>>(out.rstd),
                                               .hidden = x.size(1),
                                               .eps = eps};
    const auto kernel = typed_kernels<S>(x).rms_norm;
    for_rows(x, x.size(0), rows_per_task(x.size(1)),
             [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
  return out;
}

// How many parts the tokens are cut into, each of which sums its own dweight: on one device always
// as many, so that the sums are the same bits on any number of threads.
int64_t norm_parts(const at::Tensor& x) {
  return std::clamp<int64_t>(x.size(0) / 16, 1, x.is_cpu() ? 64 : 512);
}

// total [hidden] += the rows of sums [parts, hidden], in their order.
void add_rows(const at::Tensor& total, const at::Tensor& sums) {
  if (!sums.is_cpu()) {
    total.add_(sums.sum(0));
    return;
  }
  with_storage_type(total, [&](auto storage) {  // ATen's order may depend on the threads here
    using C = decltype(storage);
    const int64_t parts = sums.size(0), hidden = sums.size(1);
    const C* rows = data_as<C>(sums);
    C* to = data_as<C>(total);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < hidden; ++i) to[i] += rows[part * hidden + i];
  });
}

}  // namespace

NormOutput rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, Body body) {
  if (!runs_fused(body, {x, weight})) return plain_rms_norm(x, weight, eps);
  AddNormOutput out = fused_rms_norm(x, {}, weight, eps);
  return {out.y, out.rstd};
}

AddNormOutput add_rms_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                           double eps, Body body) {
  if (runs_fused(body, {x, delta, weight})) return fused_rms_norm(x, delta, weight, eps);
  const at::Tensor sum = x + delta;
  const NormOutput norm = plain_rms_norm(sum, weight, eps);
  return {sum, norm.y, norm.rstd};
}

at::Tensor rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd,
                             const at::Tensor& weight, const at::Tensor& residual_gradient,
                             const at::Tensor& weight_gradient, Body body) {
  if (!runs_fused(body, {dy, x, weight})) {
    return plain_rms_norm_backward(dy, x, rstd, weight, residual_gradient, weight_gradient);
  }
  check_like(x, x, {x.size(0), x.size(1)});
  check_like(dy, x, x.sizes());
  check_like(weight, x, {x.size(1)});
  if (residual_gradient.defined()) check_like(residual_gradient, x, x.sizes());
  check(rstd.is_contiguous() && rstd.scalar_type() == statistic_dtype(x) &&
            weight_gradient.is_contiguous() &&
            weight_gradient.scalar_type() == statistic_dtype(x) && rstd.numel() == x.size(0) &&
            weight_gradient.numel() == x.size(1),
        "rstd and the norm's weight gradient are contiguous and fp32 (fp64 where x is)");
  at::Tensor dx = at::empty_like(x);
  const int64_t parts = norm_parts(x);
  const at::Tensor sums = at::zeros({parts, x.size(1)}, weight_gradient.options());
  with_storage_type(x, [&](auto storage) {
    using S = decltype(storage);
    const fused::NormBackwardArguments<S> arguments = {
        .dy = data_as<S>(dy),
        .x = data_as<S>(x),
        .rstd = data_as<fused::Statistic<S>>(rstd),
        .weight = data_as<S>(weight),
        .residual_gradient = data_as<S>(residual_gradient),
        .dx = data_as<S>(dx),
        .sums = data_as<fused::Statistic<S>>(sums),
        .tokens = x.size(0),
        .hidden = x.size(1),
        .parts = parts};
    const auto kernel = typed_kernels<S>(x).rms_norm_backward;
    for_rows(x, parts, 1, [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
  add_rows(weight_gradient, sums);
  return dx;
}

}  // namespace picotron
