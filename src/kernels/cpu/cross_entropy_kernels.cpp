// Cross-entropy, fused: the statistics by an online softmax, block by block, so that each logit
// comes from memory once; then the gradient over the logits. See kernels/cross_entropy.h.
#include <limits>

#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

template <class S, class C>
PICOTRON_INLINE C value_of(const S* at) {
  return load<C>(at, Partial{1})[0];
}

template <class S>
void cross_entropy_statistics(const CrossEntropyArguments<S>& arguments, int64_t begin,
                              int64_t end) {
  using C = Statistic<S>;
  using V = Vector<C>;
  constexpr int64_t kBlock = 2048;  // stays in the first cache between the two looks at it
  for (int64_t row = begin; row < end; ++row) {
    const S* logits = arguments.logits + row * arguments.columns;
    C maximum = std::numeric_limits<C>::lowest();
    C sum = 0;
    for (int64_t start = 0; start < arguments.columns; start += kBlock) {
      const S* block = logits + start;
      const int64_t left = arguments.columns - start;
      const int64_t n = left < kBlock ? left : kBlock;
      // Lanes beyond the end of a partial vector are neither a maximum nor a term.
      constexpr int64_t lanes = kLanes<C>;
      const int64_t whole = n - n % lanes;
      V most[2] = {all<V>(maximum), all<V>(maximum)};
      int64_t i = 0;
      for (; i + 2 * lanes <= whole; i += 2 * lanes) {
        for (int k = 0; k < 2; ++k) {
          const V x = load<C>(block + i + k * lanes, Full{});
          most[k] = x > most[k] ? x : most[k];
        }
      }
      if (i < whole) {
        const V x = load<C>(block + i, Full{});
        most[0] = x > most[0] ? x : most[0];
      }
      C highest = max_lanes<C>(most[0] > most[1] ? most[0] : most[1]);
      for (i = whole; i < n; ++i) {
        const C x = value_of<S, C>(block + i);
        highest = x > highest ? x : highest;
      }
      if (highest > maximum) {
        sum *= exponential(all<V>(maximum - highest))[0];
        maximum = highest;
      }
      sum += sum_vectors<C>(whole, [&](int64_t at, auto part) PICOTRON_LAMBDA {
        return exponential(load<C>(block + at, part) - maximum);
      });
      if (whole < n) {
        const V terms = exponential(load<C>(block + whole, Partial{n - whole}) - maximum);
        for (int64_t k = 0; k < n - whole; ++k) sum += terms[k];
      }
    }
    const int64_t target = arguments.targets[row] - arguments.vocab_begin;
    const bool here = target >= 0 && target < arguments.columns;
    C* out = arguments.statistics + 3 * row;
    out[0] = maximum;
    out[1] = sum;
    out[2] = here ? value_of<S, C>(logits + target) : C{0};
  }
}

template <class S>
void cross_entropy_gradient(const CrossEntropyArguments<S>& arguments, int64_t begin, int64_t end) {
  using C = Statistic<S>;
  const C scale = static_cast<C>(arguments.scale);
  for (int64_t row = begin; row < end; ++row) {
    S* logits = arguments.logits + row * arguments.columns;
    const C lse = arguments.lse[row];
    const int64_t target = arguments.targets[row] - arguments.vocab_begin;
    const bool here = target >= 0 && target < arguments.columns;
    // Taken before its place is overwritten: softmax − 1 must be rounded once, not twice.
    const C target_logit = here ? value_of<S, C>(logits + target) : C{0};
    for_vectors<C>(arguments.columns, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      store(logits + i, exponential(load<C>(logits + i, part) - lse) * scale, part);
    });
    if (here) {
      const auto softmax = exponential(all<Vector<C>>(target_logit - lse));
      store(logits + target, (softmax - C{1}) * scale, Partial{1});
    }
  }
}

template void cross_entropy_statistics(const CrossEntropyArguments<bf16>&, int64_t, int64_t);
template void cross_entropy_statistics(const CrossEntropyArguments<float>&, int64_t, int64_t);
template void cross_entropy_statistics(const CrossEntropyArguments<double>&, int64_t, int64_t);
template void cross_entropy_gradient(const CrossEntropyArguments<bf16>&, int64_t, int64_t);
template void cross_entropy_gradient(const CrossEntropyArguments<float>&, int64_t, int64_t);
template void cross_entropy_gradient(const CrossEntropyArguments<double>&, int64_t, int64_t);

}  // namespace picotron::cpu::CPU_CAPABILITY
