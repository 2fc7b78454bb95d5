// The backward of attention on a CPU that multiplies bf16 fast, block by block (Dao 2022): ATen's
// own spends most of its time around its small products.
//
//     the query heads of one key/value head, `group` of them, side by side in one matrix:
//
//              a block's rows of q
//     keys     [ s, dp      ]      s = k qᵀ      dp = v doutᵀ                       two products
//     0..511   [ p, ds      ]      p = exp(s·scale − lse)                  one look at s and dp
//     512..    [ …          ]      ds = p ∘ (dp − rowsum(dout ∘ out)) · scale
//
//     dv += p dout      dk += ds q      dq += dsᵀ k                               three products
//
// Keys are a block's rows, so that only one product reads p or ds transposed. A block under the
// causal diagonal reads the keys it sees and no more. Sums are fp32. One task per sequence and
// key/value head, so the bits do not depend on the number of threads.
#pragma once
#include "kernels/attention.h"

namespace picotron {

// Whether attention_onednn_backward computes it: bf16, on a CPU for which oneDNN has fast products.
bool attention_onednn_computes(const at::Tensor& q);

// As attention_backward_into(); a head's row of `into` lies in one piece.
void attention_onednn_backward(const AttentionGradients& into, const at::Tensor& dout,
                               const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const AttentionOutput& saved, bool causal, double scale);

}  // namespace picotron
