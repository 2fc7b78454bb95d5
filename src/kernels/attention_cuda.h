// Attention on a GPU: the bodies that kernels/attention.cpp calls for tensors not on a CPU.
//
// ATen has two kernels there, reached through its dispatcher, so that this file links to no CUDA
// library, and each asks for something:
//
//                 bf16, fp16: flash (Dao 2023)          fp32: memory-efficient (CUTLASS)
//     head_dim    a multiple of 8, at most 256          a multiple of 4
//     heads       groups as they are                    as many of k, v as of q
//     lse         [batch, heads, seq]                   [batch, heads, seq up to a multiple of 32]
//     out, dout   anything with contiguous rows         as [batch, seq, heads, head_dim] in memory
//     addresses   16 bytes                              16 bytes
//
// so the code is adaptation: pad, repeat, cut, sum. tests/unit/attention_test.cpp holds it on a
// CPU, by plain kernels that refuse what the real ones refuse.
#pragma once
#include "kernels/attention.h"

namespace picotron {

// As attention() and attention_backward(). float64 has no kernel on a GPU: BrokenInvariant.
AttentionOutput attention_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               bool causal, double scale);
AttentionGradients attention_cuda_backward(const at::Tensor& dout, const at::Tensor& q,
                                           const at::Tensor& k, const at::Tensor& v,
                                           const AttentionOutput& saved, bool causal, double scale);

}  // namespace picotron
