// Attention of one key/value head of a sequence, and of the query heads that read it, on a CPU with
// AMX (Dao et al. 2022; formulas: kernels/attention.h). Everything is computed transposed, so that
// a query is a column: its maximum, its sum, its lse and delta lie in vectors of 16 queries, and
// no softmax is summed across one.
//
//     forward, for 32 queries                        backward, for 128 queries
//       for 128 keys                                   for 128 keys
//         sᵀ = k qᵀ                 [keys, queries]      sᵀ = k qᵀ      dpᵀ = v doutᵀ
//         pᵀ = exp(sᵀ scale − max)                       pᵀ = exp(sᵀ scale − lse)
//         outᵀ += vᵀ pᵀ             [dim, queries]       dsᵀ = pᵀ ∘ (dpᵀ − delta) scale
//                                                        dv += pᵀ dout      dk += dsᵀ q
//                                                        dqᵀ += kᵀ dsᵀ
//
// pᵀ and dsᵀ are made in the layout in which the next product reads them (tiles.h). Of blocks on
// the causal diagonal, what lies above it in panels of 32 is not computed.
#pragma once
#include <cstdint>

#include "kernels/cpu/kernels.h"

namespace picotron::amx {

using cpu::bf16;
using cpu::HeadRows;

struct AttentionShape {
  int64_t heads, queries, keys, dim;  // heads: query heads of the key/value head
  bool causal;                        // query i sees the keys 0..i, and there are as many of both
  float scale;
};

struct AttentionForward {
  AttentionShape shape;
  HeadRows<const bf16> q, k, v;
  HeadRows<bf16> out;   // written
  HeadRows<float> lse;  // written: one element a row
};

struct AttentionBackward {
  AttentionShape shape;
  HeadRows<const bf16> q, k, v, out, dout;
  HeadRows<const float> lse;
  HeadRows<bf16> dq, dk, dv;  // written
};

// Room to work in: bytes, aligned to 64, of one thread.
int64_t forward_workspace(const AttentionShape& shape);
int64_t backward_workspace(const AttentionShape& shape);

void attention_forward(const AttentionForward& arguments, void* workspace);
void attention_backward(const AttentionBackward& arguments, void* workspace);

}  // namespace picotron::amx
