// The kernels' own declarations within the namespace of one instruction set; see vec.h.
#pragma once
#include "kernels/cpu/kernels.h"

namespace picotron::cpu::CPU_CAPABILITY {

template <class S>
void rms_norm(const NormArguments<S>& arguments, int64_t begin, int64_t end);
template <class S>
void rms_norm_backward(const NormBackwardArguments<S>& arguments, int64_t begin, int64_t end);
template <class S>
void rope(const RopeArguments<S>& arguments, int64_t begin, int64_t end);
template <class S>
void swiglu(const S* gate_up, S* y, int64_t width, int64_t begin, int64_t end);
template <class S>
void swiglu_backward(const S* dy, const S* gate_up, S* d_gate_up, int64_t width, int64_t begin,
                     int64_t end);
template <class S>
void cross_entropy_statistics(const CrossEntropyArguments<S>& arguments, int64_t begin,
                              int64_t end);
template <class S>
void cross_entropy_gradient(const CrossEntropyArguments<S>& arguments, int64_t begin, int64_t end);
template <class S>
void sum_of_squares(const S* x, int64_t elements, double* sums, int64_t begin, int64_t end);
template <class S>
void attention_forward(const AttentionForward<S>& arguments);
template <class S>
void attention_backward(const AttentionBackward<S>& arguments);
void attention_gradient(const AttentionBlock& block);
void row_dots(const bf16* a, const bf16* b, float* dots, int64_t rows, int64_t columns);
void round_rows(const float* from, bf16* to, int64_t to_stride, int64_t rows, int64_t columns);
template <class T>
void adamw(const OptimizerArguments<T>& arguments, int64_t begin, int64_t end);
template <class T>
void sgd(const OptimizerArguments<T>& arguments, int64_t begin, int64_t end);

}  // namespace picotron::cpu::CPU_CAPABILITY
