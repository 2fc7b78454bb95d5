// Formulas and sources: adamw.h; fused loops: cpu/optimizer_kernels.cpp.
// Here: the plain definitions, and the way from tensors to pointers and threads.
#include "kernels/adamw.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numeric>

#include "kernels/fused_call.h"

namespace picotron {
namespace {

double bias_correction(double beta, int64_t step) {
  return 1 - std::pow(beta, static_cast<double>(step));
}

// The definition, over a slice. A scale that is not finite keeps what was there, and nobody waits
// for the device to know.
void plain_adamw_(const at::Tensor& master, const at::Tensor& m, const at::Tensor& v,
                  const at::Tensor& gradient, const at::Tensor& scale,
                  const AdamWOptions& options) {
  const at::Tensor g = gradient * scale;
  const at::Tensor new_m = at::lerp(m, g, 1 - options.beta1);
  const at::Tensor new_v = (v * options.beta2).addcmul_(g, g, 1 - options.beta2);
  const double sqrt_correction2 = std::sqrt(bias_correction(options.beta2, options.step));
  const at::Tensor denominator = (new_v.sqrt() / sqrt_correction2).add_(options.eps);
  const double step_size = options.learning_rate / bias_correction(options.beta1, options.step);
  const at::Tensor new_master = (master * (1 - options.learning_rate * options.weight_decay))
                                    .addcdiv_(new_m, denominator, -step_size);
  const at::Tensor finite = at::isfinite(scale);
  m.copy_(at::where(finite, new_m, m));
  v.copy_(at::where(finite, new_v, v));
  master.copy_(at::where(finite, new_master, master));
}

void plain_sgd_(const at::Tensor& master, const at::Tensor& gradient, const at::Tensor& scale,
                double learning_rate, double weight_decay) {
  const at::Tensor g = (gradient * scale).add_(master, weight_decay);
  const at::Tensor new_master = master - learning_rate * g;
  master.copy_(at::where(at::isfinite(scale), new_master, master));
}

// The plain bodies make several temporaries; slices keep those small next to a model's weights.
template <class F>
void for_slices(int64_t elements, F body) {
  constexpr int64_t kSlice = int64_t{1} << 24;
  for (int64_t begin = 0; begin < elements; begin += kSlice) {
    const int64_t length = std::min(kSlice, elements - begin);
    body([=](const at::Tensor& x) { return x.narrow(0, begin, length); });
  }
}

void check_optimizer(const at::Tensor& master, std::initializer_list<at::Tensor> others,
                     const at::Tensor& compute_copy, const at::Tensor& gradient_scale) {
  check(master.scalar_type() == at::kFloat || master.scalar_type() == at::kDouble,
        "master weights are fp32 or fp64");
  for (const at::Tensor& other : others) check_like(other, master, {master.numel()});
  if (compute_copy.defined()) {
    check(compute_copy.scalar_type() == at::kBFloat16 && master.scalar_type() == at::kFloat &&
              compute_copy.is_contiguous() && compute_copy.sizes() == master.sizes(),
          "the copy that computes is bf16, beside fp32 master weights, of the same length");
  }
  check(gradient_scale.dim() == 0 && gradient_scale.scalar_type() == master.scalar_type(),
        "the gradient's scale is a 0-dim tensor of the master weights' dtype");
}

template <class T>
const fused::OptimizerKernels<T>& optimizer_kernels(const at::Tensor& x) {
  if constexpr (std::is_same_v<T, float>)
    return fused_table(x).optimizer_float;
  else
    return fused_table(x).optimizer_double;
}

template <class F>
void with_master_type(const at::Tensor& master, F body) {
  if (master.scalar_type() == at::kDouble)
    body(double{});
  else
    body(float{});
}

}  // namespace

void adamw_(const at::Tensor& master, const at::Tensor& m, const at::Tensor& v,
            const at::Tensor& gradient, const at::Tensor& compute_copy,
            const at::Tensor& gradient_scale, const AdamWOptions& options, Body body) {
  check_optimizer(master, {master, m, v, gradient}, compute_copy, gradient_scale);
  if (!runs_fused(body, {master, gradient_scale})) {
    for_slices(master.numel(), [&](auto slice) {
      plain_adamw_(slice(master), slice(m), slice(v), slice(gradient), gradient_scale, options);
    });
    if (compute_copy.defined()) compute_copy.copy_(master);
    return;
  }
  with_master_type(master, [&](auto storage) {
    using T = decltype(storage);
    const fused::OptimizerArguments<T> arguments = {
        .master = data_as<T>(master),
        .m = data_as<T>(m),
        .v = data_as<T>(v),
        .gradient = data_as<T>(gradient),
        .compute_copy = data_as<fused::bf16>(compute_copy),
        .gradient_scale = data_as<T>(gradient_scale),
        .learning_rate = options.learning_rate,
        .beta1 = options.beta1,
        .beta2 = options.beta2,
        .eps = options.eps,
        .weight_decay = options.weight_decay,
        .step_size = options.learning_rate / bias_correction(options.beta1, options.step),
        .sqrt_bias_correction2 = std::sqrt(bias_correction(options.beta2, options.step))};
    if (master.is_cpu() && !std::isfinite(*arguments.gradient_scale)) return;  // a GPU looks itself
    const auto kernel = optimizer_kernels<T>(master).adamw;
    for_rows(master, master.numel(), kElementsPerTask,
             [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
}

void sgd_(const at::Tensor& master, const at::Tensor& gradient, const at::Tensor& compute_copy,
          const at::Tensor& gradient_scale, double learning_rate, double weight_decay, Body body) {
  check_optimizer(master, {master, gradient}, compute_copy, gradient_scale);
  if (!runs_fused(body, {master, gradient_scale})) {
    for_slices(master.numel(), [&](auto slice) {
      plain_sgd_(slice(master), slice(gradient), gradient_scale, learning_rate, weight_decay);
    });
    if (compute_copy.defined()) compute_copy.copy_(master);
    return;
  }
  with_master_type(master, [&](auto storage) {
    using T = decltype(storage);
    fused::OptimizerArguments<T> arguments = {};
    arguments.master = data_as<T>(master);
    arguments.gradient = data_as<T>(gradient);
    arguments.compute_copy = data_as<fused::bf16>(compute_copy);
    arguments.gradient_scale = data_as<T>(gradient_scale);
    arguments.learning_rate = learning_rate;
    arguments.weight_decay = weight_decay;
    if (master.is_cpu() && !std::isfinite(*arguments.gradient_scale)) return;  // a GPU looks itself
    const auto kernel = optimizer_kernels<T>(master).sgd;
    for_rows(master, master.numel(), kElementsPerTask,
             [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
}

at::Tensor sum_of_squares(const at::Tensor& x, Body body) {
  if (!runs_fused(body, {x})) return x.to(at::kDouble).square().sum();
  check_like(x, x, {x.numel()});
  const int64_t blocks = (x.numel() + fused::kSquaresBlock - 1) / fused::kSquaresBlock;
  const at::Tensor sums = at::empty({blocks}, x.options().dtype(at::kDouble));
  with_storage_type(x, [&](auto storage) {
    using S = decltype(storage);
    const auto kernel = typed_kernels<S>(x).sum_of_squares;
    for_rows(x, blocks, 1, [&](int64_t begin, int64_t end) {
      kernel(data_as<S>(x), x.numel(), data_as<double>(sums), begin, end);
    });
  });
  if (!x.is_cpu()) return sums.sum();
  const double* first = data_as<double>(sums);  // ATen's order may depend on the threads here
  return at::scalar_tensor(std::accumulate(first, first + blocks, 0.0), sums.options());
}

}  // namespace picotron
