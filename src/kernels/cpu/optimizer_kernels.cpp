// AdamW, SGD and the sum of squares, fused: the optimizer is pure memory traffic. The formulas are
// in kernels/adamw.h.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

// Writes the new weights, and their bf16 copy where the model has one (never beside fp64).
template <class T, class Part>
PICOTRON_INLINE void store_weights(const OptimizerArguments<T>& arguments, int64_t i,
                                   const Vector<T>& w, Part part) {
  store(arguments.master + i, w, part);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (arguments.compute_copy != nullptr) store(arguments.compute_copy + i, w, part);
  }
}

template <class T>
void adamw(const OptimizerArguments<T>& arguments, int64_t begin, int64_t end) {
  const T decay = static_cast<T>(1 - arguments.learning_rate * arguments.weight_decay);
  const T m_rate = static_cast<T>(1 - arguments.beta1);
  const T beta2 = static_cast<T>(arguments.beta2);
  const T v_rate = static_cast<T>(1 - arguments.beta2);
  const T eps = static_cast<T>(arguments.eps);
  const T step = static_cast<T>(arguments.step_size);
  const T sqrt_correction = static_cast<T>(arguments.sqrt_bias_correction2);
  const T scale = *arguments.gradient_scale;
  for_vectors<T>(end - begin, [&](int64_t at, auto part) PICOTRON_LAMBDA {
    const int64_t i = begin + at;
    const auto g = load<T>(arguments.gradient + i, part) * scale;
    auto m = load<T>(arguments.m + i, part);
    m = m + m_rate * (g - m);
    const auto v = load<T>(arguments.v + i, part) * beta2 + v_rate * g * g;
    store(arguments.m + i, m, part);
    store(arguments.v + i, v, part);
    const auto w = load<T>(arguments.master + i, part) * decay;
    const auto denominator = square_root(v) / sqrt_correction + eps;
    store_weights<T>(arguments, i, w - step * m / denominator, part);
  });
}

template <class T>
void sgd(const OptimizerArguments<T>& arguments, int64_t begin, int64_t end) {
  const T rate = static_cast<T>(arguments.learning_rate);
  const T decay = static_cast<T>(arguments.weight_decay);
  const T scale = *arguments.gradient_scale;
  for_vectors<T>(end - begin, [&](int64_t at, auto part) PICOTRON_LAMBDA {
    const int64_t i = begin + at;
    const auto w = load<T>(arguments.master + i, part);
    const auto g = load<T>(arguments.gradient + i, part) * scale + decay * w;
    store_weights<T>(arguments, i, w - rate * g, part);
  });
}

// In fp64 whatever the type: a norm over a billion elements must not lose the small ones.
template <class S>
void sum_of_squares(const S* x, int64_t elements, double* sums, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = fused::kSquaresBlock;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlock;
    const int64_t left = elements - first;
    sums[block] = sum_vectors<double>(left < kBlock ? left : kBlock,
                                      [&](int64_t i, auto part) PICOTRON_LAMBDA {
                                        const auto v = load<double>(x + first + i, part);
                                        return v * v;
                                      });
  }
}

template void adamw(const OptimizerArguments<float>&, int64_t, int64_t);
template void adamw(const OptimizerArguments<double>&, int64_t, int64_t);
template void sgd(const OptimizerArguments<float>&, int64_t, int64_t);
template void sgd(const OptimizerArguments<double>&, int64_t, int64_t);
template void sum_of_squares(const bf16*, int64_t, double*, int64_t, int64_t);
template void sum_of_squares(const float*, int64_t, double*, int64_t, int64_t);
template void sum_of_squares(const double*, int64_t, double*, int64_t, int64_t);

}  // namespace picotron::cpu::CPU_CAPABILITY
