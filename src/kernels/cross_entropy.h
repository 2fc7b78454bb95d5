// Cross-entropy over a vocabulary that may be split over ranks, and in chunks of tokens, so that
// full logits exist nowhere (the split: Shoeybi et al. 2019, "Megatron-LM"; one-pass softmax:
// Milakov and Gimelshein 2018). For one token, x the logits of all the vocabulary, t its target:
//
//     loss = lse − x[t],     lse = log Σ exp(x)          dx = softmax(x) − onehot(t)
//
// Each rank reads its columns once and keeps three numbers per token; three numbers of each rank
// give the loss:
//
//     rank 0: [ x0 x1 x2 ] → (max, Σ exp(x − max), x[t] or 0) ┐
//     rank 1: [ x3 x4 x5 ] → (max, Σ exp(x − max), x[t] or 0) ┴ all-gather, merge → (lse, x[t])
//
// and a second pass turns the logits into their gradient where they lie.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/body.h"

namespace picotron {

// logits: [t, v] contiguous (bf16, fp32, fp64), the columns vocab_begin … vocab_begin + v − 1 of
// the vocabulary (v ≥ 1); targets: int64 [t], ids of the whole vocabulary.
// → [t, 3] fp32 (fp64 where logits are): (max, Σ exp(x − max), target's logit or 0 if not here).
at::Tensor cross_entropy_statistics(const at::Tensor& logits, const at::Tensor& targets,
                                    int64_t vocab_begin, Body body = Body::fused);

// all: [ranks, t, 3], every rank's statistics → [t, 2]: (lse, the target's logit), whose difference
// is the loss.
at::Tensor merge_statistics(const at::Tensor& all);

// logits ← (softmax − onehot) · scale, in place; lse: [t], fp32 (fp64 where logits are), a column
// of merge_statistics (any stride).
void cross_entropy_gradient_(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t vocab_begin, const at::Tensor& lse, double scale,
                             Body body = Body::fused);

}  // namespace picotron
