// RMSNorm (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"), as `transformers`
// computes it:
//
//     rstd = 1 / sqrt(mean(x²) + eps)      in fp32 (fp64 for fp64), one number per token
//     y    = round(x · rstd) · weight      round: to x's dtype
//
// and its backward. With n = x·rstd, g = dy·weight and H = hidden:
//
//     dx      = rstd · (g − n · mean(g·n))         mean over hidden
//     dweight = sum over tokens of dy · n
//
// Both are bound by memory, so what stands beside the norm in a Llama layer is done in the same
// pass: the addition to the residual stream before it, and the residual's gradient after it.
// Next: kernels/cpu/norm_kernels.cpp for the fused loops.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/body.h"

namespace picotron {

struct NormOutput {
  at::Tensor y;     // [tokens, hidden], x's dtype
  at::Tensor rstd;  // [tokens], fp32 (fp64 where x is): kept for the backward
};

// x: [tokens, hidden], weight: [hidden], both contiguous, of one dtype (bf16, fp32, fp64).
NormOutput rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    Body body = Body::fused);

struct AddNormOutput {
  at::Tensor sum;   // [tokens, hidden] = x + delta: the new residual stream, rounded to x's dtype
  at::Tensor y;     // [tokens, hidden] = rms_norm(sum)
  at::Tensor rstd;  // [tokens]
};

// sum = x + delta, then rms_norm(sum), in one pass. x, delta: [tokens, hidden].
AddNormOutput add_rms_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                           double eps, Body body = Body::fused);

// Returns dx [tokens, hidden] (+ residual_gradient, where defined: [tokens, hidden]; the gradient
// that reaches x around the norm), and adds dweight to weight_gradient: [hidden] fp32 (fp64 where x
// is). x is the norm's input (for add_rms_norm: sum), rstd what the forward returned. On one kind
// of device the same bits every time, on any number of threads: the tokens are cut into parts, each
// is summed in order, and then the parts' sums.
at::Tensor rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd,
                             const at::Tensor& weight, const at::Tensor& residual_gradient,
                             const at::Tensor& weight_gradient, Body body = Body::fused);

}  // namespace picotron
