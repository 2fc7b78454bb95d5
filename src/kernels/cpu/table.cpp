// The table of this instruction set's kernels: constants only, so that nothing compiled for it runs
// before the choice is made.
#include "kernels/cpu/instruction_set.h"

#define PICOTRON_NAME_OF(x) #x
#define PICOTRON_NAME(x) PICOTRON_NAME_OF(x)

namespace picotron::cpu::CPU_CAPABILITY {

template <class S>
constexpr TypedKernels<S> kTyped = {
    .rms_norm = rms_norm<S>,
    .rms_norm_backward = rms_norm_backward<S>,
    .rope = rope<S>,
    .swiglu = swiglu<S>,
    .swiglu_backward = swiglu_backward<S>,
    .cross_entropy_statistics = cross_entropy_statistics<S>,
    .cross_entropy_gradient = cross_entropy_gradient<S>,
    .sum_of_squares = sum_of_squares<S>,
};

template <class S>
constexpr AttentionKernels<S> kAttention = {.forward = attention_forward<S>,
                                            .backward = attention_backward<S>};

constinit const Kernels kernels = {
    .instruction_set = PICOTRON_NAME(CPU_CAPABILITY),
    .attention_bf16 = kAttention<bf16>,
    .attention_float = kAttention<float>,
    .attention_double = kAttention<double>,
    .attention_gradient = attention_gradient,
    .row_dots = row_dots,
    .round_rows = round_rows,
    .fused = {.of_bf16 = kTyped<bf16>,
              .of_float = kTyped<float>,
              .of_double = kTyped<double>,
              .optimizer_float = {.adamw = adamw<float>, .sgd = sgd<float>},
              .optimizer_double = {.adamw = adamw<double>, .sgd = sgd<double>}},
};

}  // namespace picotron::cpu::CPU_CAPABILITY
