// SwiGLU, fused: one exponential and one division per element and pass. See kernels/swiglu.h.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

template <class C>
PICOTRON_INLINE Vector<C> sigmoid(const Vector<C>& x) {
  return C{1} / (C{1} + exponential(-x));
}

template <class S>
void swiglu(const S* gate_up, S* y, int64_t width, int64_t begin, int64_t end) {
  using C = Statistic<S>;
  for (int64_t row = begin; row < end; ++row) {
    const S* gate = gate_up + row * 2 * width;
    const S* up = gate + width;
    S* out = y + row * width;
    for_vectors<C>(width, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      const auto g = load<C>(gate + i, part);
      store(out + i, g * sigmoid<C>(g) * load<C>(up + i, part), part);
    });
  }
}

template <class S>
void swiglu_backward(const S* dy, const S* gate_up, S* d_gate_up, int64_t width, int64_t begin,
                     int64_t end) {
  using C = Statistic<S>;
  for (int64_t row = begin; row < end; ++row) {
    const S* gate = gate_up + row * 2 * width;
    const S* up = gate + width;
    const S* d = dy + row * width;
    S* d_gate = d_gate_up + row * 2 * width;
    S* d_up = d_gate + width;
    for_vectors<C>(width, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      const auto g = load<C>(gate + i, part);
      const auto dout = load<C>(d + i, part);
      const auto s = sigmoid<C>(g);
      store(d_gate + i, dout * load<C>(up + i, part) * s * (C{1} + g * (C{1} - s)), part);
      store(d_up + i, dout * g * s, part);
    });
  }
}

template void swiglu(const bf16*, bf16*, int64_t, int64_t, int64_t);
template void swiglu(const float*, float*, int64_t, int64_t, int64_t);
template void swiglu(const double*, double*, int64_t, int64_t, int64_t);
template void swiglu_backward(const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t);
template void swiglu_backward(const float*, const float*, float*, int64_t, int64_t, int64_t);
template void swiglu_backward(const double*, const double*, double*, int64_t, int64_t, int64_t);

}  // namespace picotron::cpu::CPU_CAPABILITY
