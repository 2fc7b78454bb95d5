// Attention in bf16 on a CPU with AMX, both directions: the loops are in amx/attention.cpp. One
// task per sequence and key/value head, so the bits do not depend on the number of threads.
#pragma once
#include "kernels/attention.h"

namespace picotron {

// Whether attention_amx and attention_amx_backward compute it.
bool attention_amx_computes(const at::Tensor& q);

// As attention() and attention_backward_into(); a head's row of `into` lies in one piece.
AttentionOutput attention_amx(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              bool causal, double scale);
void attention_amx_backward(const AttentionGradients& into, const at::Tensor& dout,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOutput& saved, bool causal, double scale);

}  // namespace picotron
