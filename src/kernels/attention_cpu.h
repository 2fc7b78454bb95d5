// Attention on a CPU in vectors, both directions, in fp32 (fp64 for float64): the loops are in
// cpu/attention_kernels.cpp. ATen's work through a library's product for each small tile, and take
// two to three times as long where that has no matrix unit. One task per sequence and key/value
// head, so the bits do not depend on the number of threads.
#pragma once
#include "kernels/attention.h"
#include "kernels/fused_dispatch.h"

namespace picotron {

// As attention() and attention_backward_into(), for tensors on a CPU; a head's row of `into` lies
// in one piece. kernels: of which instruction set (tests ask for each).
AttentionOutput attention_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              bool causal, double scale,
                              const cpu::Kernels& kernels = cpu_kernels());
void attention_cpu_backward(const AttentionGradients& into, const at::Tensor& dout,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOutput& saved, bool causal, double scale,
                            const cpu::Kernels& kernels = cpu_kernels());

}  // namespace picotron
