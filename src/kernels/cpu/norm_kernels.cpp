// RMSNorm, fused: a token's row is read from memory once and stays in the first cache for the
// second look. The formulas are in kernels/norm.h.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

template <class S>
void rms_norm(const NormArguments<S>& arguments, int64_t begin, int64_t end) {
  using C = Statistic<S>;
  const int64_t hidden = arguments.hidden;
  for (int64_t row = begin; row < end; ++row) {
    const S* x = arguments.x + row * hidden;
    C squares;
    if (arguments.delta != nullptr) {
      const S* delta = arguments.delta + row * hidden;
      S* sum = arguments.sum + row * hidden;
      squares = sum_vectors<C>(hidden, [&](int64_t i, auto part) PICOTRON_LAMBDA {
        const auto v = store(sum + i, load<C>(x + i, part) + load<C>(delta + i, part), part);
        return v * v;
      });
      x = sum;
    } else {
      squares = sum_vectors<C>(hidden, [&](int64_t i, auto part) PICOTRON_LAMBDA {
        const auto v = load<C>(x + i, part);
        return v * v;
      });
    }
    const C rstd =
        C{1} / square_root(squares / static_cast<C>(hidden) + static_cast<C>(arguments.eps));
    arguments.rstd[row] = rstd;
    S* y = arguments.y + row * hidden;
    for_vectors<C>(hidden, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      const auto n = rounded<S>(load<C>(x + i, part) * rstd);
      store(y + i, n * load<C>(arguments.weight + i, part), part);
    });
  }
}

template <class S>
PICOTRON_INLINE void backward_of_tokens(const NormBackwardArguments<S>& arguments,
                                        Statistic<S>* weight_gradient, int64_t begin, int64_t end) {
  using C = Statistic<S>;
  const int64_t hidden = arguments.hidden;
  const S* weight = arguments.weight;
  for (int64_t row = begin; row < end; ++row) {
    const S* dy = arguments.dy + row * hidden;
    const S* x = arguments.x + row * hidden;
    const C rstd = arguments.rstd[row];
    const C g_dot_n =
        rstd * sum_vectors<C>(hidden, [&](int64_t i, auto part) PICOTRON_LAMBDA {
          const auto dy_x = load<C>(dy + i, part) * load<C>(x + i, part);
          store(weight_gradient + i, load<C>(weight_gradient + i, part) + dy_x * rstd, part);
          return dy_x * load<C>(weight + i, part);
        });
    const C pull = g_dot_n / static_cast<C>(hidden) * rstd;  // of x, towards zero
    const S* around = arguments.residual_gradient;
    if (around != nullptr) around += row * hidden;
    S* dx = arguments.dx + row * hidden;
    for_vectors<C>(hidden, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      const auto g = load<C>(dy + i, part) * load<C>(weight + i, part);
      auto d = (g - load<C>(x + i, part) * pull) * rstd;
      if (around != nullptr) d += load<C>(around + i, part);
      store(dx + i, d, part);
    });
  }
}

template <class S>
void rms_norm_backward(const NormBackwardArguments<S>& arguments, int64_t begin, int64_t end) {
  for (int64_t part = begin; part < end; ++part) {
    backward_of_tokens<S>(arguments, arguments.sums + part * arguments.hidden,
                          arguments.tokens * part / arguments.parts,
                          arguments.tokens * (part + 1) / arguments.parts);
  }
}

template void rms_norm(const NormArguments<bf16>&, int64_t, int64_t);
template void rms_norm(const NormArguments<float>&, int64_t, int64_t);
template void rms_norm(const NormArguments<double>&, int64_t, int64_t);
template void rms_norm_backward(const NormBackwardArguments<bf16>&, int64_t, int64_t);
template void rms_norm_backward(const NormBackwardArguments<float>&, int64_t, int64_t);
template void rms_norm_backward(const NormBackwardArguments<double>&, int64_t, int64_t);

}  // namespace picotron::cpu::CPU_CAPABILITY
