// AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"), in
// torch.optim.AdamW's order of operations. With g the clipped gradient and t the step, from 1:
//
//     w ← w · (1 − lr·weight_decay)
//     m ← m + (1 − β1)·(g − m)            v ← β2·v + (1 − β2)·g²
//     w ← w − (lr / (1 − β1^t)) · m / (√v / √(1 − β2^t) + eps)
//
// All of it, the clip factor and the bf16 copy of w that the model computes with included, in one
// pass: 16 bytes read and 14 written per parameter. Plain SGD stands beside it because it does not
// hide a wrongly scaled gradient, as Adam does. Both take flat buffers; a step's slices come from
// ZeRO-1.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/body.h"

namespace picotron {

struct AdamWOptions {
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  int64_t step;  // from 1: this update's number
};

// master, m, v, gradient: 1-D contiguous, fp32 or fp64, of one length. gradient is only read.
// compute_copy: bf16, or undefined where master is what the model computes with.
// gradient_scale: 0-dim, master's dtype, on the same device: the clip factor. Where it is not
// finite nothing changes: the decision is taken on the device, nobody waits for it.
void adamw_(const at::Tensor& master, const at::Tensor& m, const at::Tensor& v,
            const at::Tensor& gradient, const at::Tensor& compute_copy,
            const at::Tensor& gradient_scale, const AdamWOptions& options, Body body = Body::fused);

// torch.optim.SGD without momentum: w ← w − lr·(g + weight_decay·w). Arguments as for adamw_.
void sgd_(const at::Tensor& master, const at::Tensor& gradient, const at::Tensor& compute_copy,
          const at::Tensor& gradient_scale, double learning_rate, double weight_decay,
          Body body = Body::fused);

// Σ x², 0-dim float64 on x's device; x: 1-D contiguous (bf16, fp32, fp64). Blocks of a fixed size
// are summed in order, so the fused bits do not depend on the number of threads.
at::Tensor sum_of_squares(const at::Tensor& x, Body body = Body::fused);

}  // namespace picotron
