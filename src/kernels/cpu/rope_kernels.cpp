// RoPE, fused: each head's two halves are read, turned and written back in place. The formula is in
// kernels/rope.h.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

template <class S>
void rope(const RopeArguments<S>& arguments, int64_t begin, int64_t end) {
  using C = Statistic<S>;
  const int64_t half = arguments.half;
  const C direction = arguments.inverse ? C{-1} : C{1};
  for (int64_t token = begin; token < end; ++token) {
    const int64_t position = arguments.positions[token];
    const C* cosines = arguments.cos + position * half;
    const C* sines = arguments.sin + position * half;
    S* head = arguments.x + token * arguments.token_stride;
    for (int64_t h = 0; h < arguments.heads; ++h, head += arguments.head_stride) {
      for_vectors<C>(half, [&](int64_t i, auto part) PICOTRON_LAMBDA {
        const auto cosine = load<C>(cosines + i, part);
        const auto sine = load<C>(sines + i, part) * direction;
        const auto a = load<C>(head + i, part);
        const auto b = load<C>(head + half + i, part);
        store(head + i, a * cosine - b * sine, part);
        store(head + half + i, b * cosine + a * sine, part);
      });
    }
  }
}

template void rope(const RopeArguments<bf16>&, int64_t, int64_t);
template void rope(const RopeArguments<float>&, int64_t, int64_t);
template void rope(const RopeArguments<double>&, int64_t, int64_t);

}  // namespace picotron::cpu::CPU_CAPABILITY
