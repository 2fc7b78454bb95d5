// The backward of attention on a CPU that multiplies bf16 fast, block by block (Dao 2022): ATen's
// own spends most of its time around its small products.
//
//     the query heads of one key/value head, `group` of them, are rows of one matrix:
//
//             keys 0..511      512..1023
//     rows   [ s, dp      ]   [ s, dp    ]      s = q kᵀ      dp = dout vᵀ          two products
//     of a   [ p, ds      ]   [ p, ds    ]      p = exp(s·scale − lse)       one look at s and dp
//     block                                     ds = p ∘ (dp − rowsum(dout ∘ out)) · scale
//
//     dv += pᵀ dout      dk += dsᵀ q      dq += ds k                              three products
//
// A block under the causal diagonal reads the keys it sees and no more. Sums are fp32. One task per
// sequence and key/value head, so the bits do not depend on the number of threads.
#pragma once
#include "kernels/attention.h"

namespace picotron {

// Whether attention_cpu_backward computes it: bf16, on a CPU for which oneDNN has fast products.
bool attention_cpu_computes(const at::Tensor& q);

// As attention_backward().
AttentionGradients attention_cpu_backward(const at::Tensor& dout, const at::Tensor& q,
                                          const at::Tensor& k, const at::Tensor& v,
                                          const AttentionOutput& saved, bool causal, double scale);

}  // namespace picotron
