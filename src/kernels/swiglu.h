// SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"): the gate of Llama's MLP.
//
//     y = silu(gate) · up          silu(g) = g · s(g),   s(g) = 1 / (1 + e^−g)
//     dup = dy · silu(gate)        dgate = dy · up · s · (1 + g·(1 − s))
//
// gate and up come from one matrix product and lie side by side: gate_up = [ gate | up ] is
// [tokens, 2·I]. As everywhere, bf16 is computed in fp32 and rounded once, at the end.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/body.h"

namespace picotron {

// gate_up: [tokens, 2·I] contiguous (bf16, fp32, fp64) → [tokens, I].
at::Tensor swiglu(const at::Tensor& gate_up, Body body = Body::fused);

// dy: [tokens, I], gate_up as the forward saw it → d(gate_up): [tokens, 2·I].
at::Tensor swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up,
                           Body body = Body::fused);

}  // namespace picotron
