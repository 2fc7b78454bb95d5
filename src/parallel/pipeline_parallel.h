// The pipeline runner: executes a schedule (parallel/pipeline_schedule.h) on this rank's stage.
//
// A Stage is anything with a forward that keeps what its backward needs; Llama is one
// (model/llama.h). Activations enter a stage as x [tokens, hidden] and leave as y; their gradients
// travel the other way. The first stage reads token ids instead, and the last one has the loss,
// which it computes as part of its backward: between the forward and the backward of a microbatch
// nothing but the final hidden states is kept.
//
// Without pipeline parallelism there is one stage and the same runner. Read next: train/train.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "parallel/data_parallel.h"
#include "parallel/pipeline_schedule.h"

namespace picotron {

// One microbatch on this rank's device. tokens = rows · columns, row after row.
struct TokenBatch {
  int64_t rows = 0, columns = 0;  // sequences, and tokens of each that are here (seq / cp)
  at::Tensor ids, targets;        // int64 [tokens]
  at::Tensor positions;           // int64 [tokens], of each token in its sequence
};

// What a forward keeps for its backward; each Stage has its own.
struct Saved {
  virtual ~Saved() = default;
};

struct Stage {
  virtual ~Stage() = default;
  // x [tokens, hidden]; undefined on the first stage. → y [tokens, hidden]. Fills `saved`.
  virtual at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                             std::unique_ptr<Saved>& saved) = 0;
  // dy [tokens, hidden] → dx; on the last stage dy is undefined and the gradient is that of
  // scale · loss, whose Σ over the tokens is added to `loss` (0-dim). On the first stage dx is
  // undefined. Consumes `saved`.
  virtual at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                              std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                              Gradients& gradients) = 0;
  // The forward alone, for validation: x → y; on the last stage undefined, and Σ of the tokens'
  // losses is added to `loss` (0-dim).
  virtual at::Tensor evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                              const at::Tensor& loss) = 0;
  // What an input or its gradient is received into: [tokens/sp, hidden].
  virtual at::Tensor empty_input(const TokenBatch& batch) const = 0;
};

// Runs every action of one step. `scale` = 1 / (tokens of the global batch). Returns Σ of this
// rank's token losses · scale, 0-dim fp64 on the device (0 except on the last stage): its sum over
// the world is the mean over all tokens of the global batch, once per replica of tp (divide by
// tp_size).
at::Tensor run_schedule(const Schedule& schedule, Stage& stage,
                        const std::vector<TokenBatch>& batches, double scale, Gradients& gradients);

}  // namespace picotron
