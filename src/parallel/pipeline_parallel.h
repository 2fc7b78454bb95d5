// The pipeline runner: executes a schedule (parallel/pipeline_schedule.h) on this rank's stage.
//
//     stage s − 1   ── activations ──▶   stage s   ── activations ──▶   stage s + 1
//                   ◀── gradients ───   (chunks)   ◀── gradients ───
//
// A Stage is anything with a forward that keeps what its backward needs; Llama is one
// (model/llama.h). Activations enter as x [tokens, hidden] and leave as y; their gradients travel
// the other way. The first virtual stage reads token ids instead, and the last one has the loss,
// which it computes as part of its backward: between the forward and the backward of a microbatch
// nothing but the final hidden states is kept.
//
// The list says when a receive is started and when a tensor is sent; the runner waits for a tensor
// where it is used. With one stage no list has a message, or the stage hands it to itself: there is
// one runner for every layout. Read next: train/train.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "dist/mesh.h"
#include "parallel/data_parallel.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/token_batch.h"

namespace picotron {

// What a forward keeps for its backward; each Stage has its own.
struct Saved {
  virtual ~Saved() = default;
};

struct Stage {
  virtual ~Stage() = default;
  // x [tokens, hidden]; undefined on the first virtual stage. → y [tokens, hidden]; undefined on
  // the last one. Fills `saved`.
  virtual at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                             std::unique_ptr<Saved>& saved) = 0;
  // dy [tokens, hidden] → dx; on the last virtual stage dy is undefined and the gradient is that of
  // scale · loss, whose Σ over the tokens is added to `loss` (0-dim). On the first one dx is
  // undefined. Consumes `saved`.
  virtual at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                              std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                              Gradients& gradients) = 0;
  // The forward without keeping anything; the last virtual stage adds Σ of the tokens' losses to
  // `loss` (0-dim).
  virtual at::Tensor evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                              const at::Tensor& loss) = 0;
  // A tensor to receive x or dy in: [tokens, hidden], under sequence parallel [tokens/tp, hidden].
  virtual at::Tensor empty_input(const TokenBatch& batch) const = 0;
};

// Runs every action of one step. `scale` = 1 / (tokens of the global batch). Returns Σ of this
// rank's token losses · scale, 0-dim fp64 on the device (0 except on the last stage): its sum over
// the world is the mean over all tokens of the global batch, once per replica of tp (divide by
// tp_size).
at::Tensor run_schedule(const Schedule& schedule, Stage& stage,
                        const std::vector<TokenBatch>& batches, double scale, Gradients& gradients,
                        const Mesh& mesh);

// Validation: runs a list of forwards (ScheduleOptions::forward_only). Returns Σ of this rank's
// token losses, 0-dim fp64 on the device (0 except on the last stage).
at::Tensor run_forward(const Schedule& schedule, Stage& stage,
                       const std::vector<TokenBatch>& batches, const Mesh& mesh);

}  // namespace picotron
