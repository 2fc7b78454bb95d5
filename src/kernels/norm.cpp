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
    const cpu::NormArguments<S> arguments = {.x = data_as<S>(x),
                                             .delta = data_as<S>(delta),
                                             .weight = data_as<S>(weight),
                                             .sum = data_as<S>(out.sum),
                                             .y = data_as<S>(out.y),
                                             .rstd = data_as<cpu::Statistic<S>>(out.rstd),
                                             .hidden = x.size(1),
                                             .eps = eps};
    const auto kernel = typed_kernels<S>().rms_norm;
    at::parallel_for(0, x.size(0), rows_per_task(x.size(1)),
                     [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
  return out;
}

// The tokens are cut into parts whose number does not depend on the threads; each part sums its
// tokens' dweight into its own row, and the rows are added in order: the same bits on any number
// of threads.
template <class S>
void fused_rms_norm_backward(const cpu::NormBackwardArguments<S>& arguments, int64_t tokens,
                             const at::Tensor& weight_gradient) {
  using C = cpu::Statistic<S>;
  const int64_t hidden = arguments.hidden;
  const int64_t parts = std::clamp<int64_t>(tokens / 16, 1, 64);
  const at::Tensor sums = at::zeros({parts, hidden}, weight_gradient.options());
  C* rows = sums.data_ptr<C>();
  const auto kernel = typed_kernels<S>().rms_norm_backward;
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(arguments, rows + part * hidden, tokens * part / parts, tokens * (part + 1) / parts);
    }
  });
  C* total = weight_gradient.data_ptr<C>();
  for (int64_t part = 0; part < parts; ++part) {
    const C* row = rows + part * hidden;
    for (int64_t i = 0; i < hidden; ++i) total[i] += row[i];
  }
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
  with_storage_type(x, [&](auto storage) {
    using S = decltype(storage);
    fused_rms_norm_backward<S>({.dy = data_as<S>(dy),
                                .x = data_as<S>(x),
                                .rstd = data_as<cpu::Statistic<S>>(rstd),
                                .weight = data_as<S>(weight),
                                .residual_gradient = data_as<S>(residual_gradient),
                                .dx = data_as<S>(dx),
                                .hidden = x.size(1)},
                               x.size(0), weight_gradient);
  });
  return dx;
}

}  // namespace picotron
