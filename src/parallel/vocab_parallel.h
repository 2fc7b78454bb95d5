// Vocabulary parallel: the embedding and the head are cut over tp along the vocabulary.
//
//     embedding   a rank looks up the ids it holds, others give zero; their sum over tp is the
//                 embedding
//     head+loss   a rank computes the logits of its columns; three numbers per token (max, Σ exp,
//                 target's logit) go round, each rank knows the loss and turns its logits into
//                 their gradient where they lie
//
// Logits are the largest tensor of a small model (8,192 tokens × 128k vocabulary × 2 bytes = 2 GB),
// so head and loss run in chunks of tokens: forward, loss and backward of one chunk, then the next.
// Full logits never exist, on any rank, and nothing is recomputed. The loss is known up to its
// scale 1/(tokens of the global batch) before the forward ends, which is why its gradient can be
// taken at once. See kernels/cross_entropy.h for the formulas.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "dist/mesh.h"
#include "kernels/body.h"
#include "parallel/data_parallel.h"
#include "parallel/parameter.h"
#include "parallel/tensor_parallel.h"

namespace picotron {

// [vocab, hidden] cut over tp along the vocabulary. The embedding and the head are one each, or,
// tied, share one; on different stages each holds a copy, `tied` over the first and the last.
struct VocabMatrix {
  Weight* weight = nullptr;  // [vocab/tp, hidden]
  int64_t vocab_begin = 0;   // the first id held here
  TensorParallel tp = {};
  static VocabMatrix declare(Parameters& parameters, const std::string& name, Role role,
                             int64_t vocab, int64_t hidden, const TensorParallel& tp);
};

// Makes one parameter of embedding and head, where tied: one Weight with two uses where they are
// the same; else copies on the first and the last of `stages`. Null: not on this stage.
void tie(Parameters& parameters, Weight* embedding, Weight* head, const Group& stages);

struct VocabParallelEmbedding : VocabMatrix {
  // ids int64 [tokens] → [tokens/sp, hidden].  fwd: reduce(tp)
  at::Tensor forward(const at::Tensor& ids) const;
  // dy [tokens/sp, hidden].  bwd: gather(tp)
  void backward(const at::Tensor& dy, const at::Tensor& ids, Gradients& gradients) const;
};

struct VocabParallelHead : VocabMatrix {
  Body body = Body::fused;

  // x [tokens/sp, hidden], targets int64 [tokens] → Σ of the tokens' losses, 0-dim fp32 (fp64),
  // equal on every tp rank.
  at::Tensor loss(const at::Tensor& x, const at::Tensor& targets) const;

  struct LossAndGradient {
    at::Tensor loss;  // Σ of the tokens' losses, not scaled
    at::Tensor dx;    // [tokens/sp, hidden], gradient of scale · loss.  reduce(tp)
  };
  // Forward and backward at once; the weight's gradient of scale · loss is accumulated, and counts
  // as one contribution.
  LossAndGradient loss_and_gradient(const at::Tensor& x, const at::Tensor& targets, double scale,
                                    Gradients& gradients) const;

  // x [tokens/sp, hidden] → [tokens, vocab/tp]: for generation alone.
  at::Tensor logits(const at::Tensor& x) const;
};

}  // namespace picotron
