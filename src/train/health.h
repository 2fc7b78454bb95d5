// Self-care: what a run watches in itself, and what it says when something is wrong.
//
//     loss or norm not finite   That step changes no weight. Every rank reads the same numbers, so
//                               all look, together, for what went wrong first: weights ─▶ a
//                               module's output, in the forward pass once more ─▶ a gradient.
//     a loss far above its      The step is marked, and the run goes on.
//     recent course
//     replicas that differ      Every logging.desync_check steps, a hash of each parameter's bits
//                               is compared among the ranks that hold the same.
//
// What one rank finds all are told, so that every rank stops with one sentence: the step, the
// module by its Hugging Face name, the rank and its place. For who reads it: docs/self-care.md.
#pragma once
#include <cstdint>
#include <vector>

#include "dist/mesh.h"
#include "model/llama.h"
#include "parallel/data_parallel.h"
#include "train/metrics.h"
#include "train/run.h"

namespace picotron {

// The running mean and variance of the loss, by which a spike is told.
struct LossHistory {
  int64_t steps = 0;
  double mean = 0, variance = 0;
};

// Takes in the loss of the next step. True where it is a spike: after 20 steps, a loss above the
// mean by 6 standard deviations and by a tenth. Mean and variance are of all steps, after 50
// exponential with weight 1/50. A spike enters as the lowest loss that is one, so that a loss which
// stays high is marked a dozen times and then is the usual one.
bool note_loss(LossHistory& history, double loss);

bool is_finite(const StepMetrics& metrics);

// A step whose loss or gradient norm is not finite. The weights are still those that it began with:
// its update has changed nothing, nor has any after it.
struct FaultyStep {
  StepMetrics metrics;
  std::vector<TokenBatch> batches;  // its microbatches
  bool overwritten = false;         // the gradient buffer holds those of a later step
};
// Looks for what went wrong first. Every rank calls it, and throws the same RunError.
[[noreturn]] void stop_at(const FaultyStep& step, const Run& run, const Mesh& mesh, Llama& model,
                          Gradients& gradients);

// On steps that logging.desync_check divides: compares, bit for bit, the weights that ranks have in
// common, over dp×cp, over tp (norms, shared key/value heads) and between tied embeddings. Before
// the update, for under ZeRO-1 that gives every replica its owner's values, whatever it had. Every
// rank calls it. Throws, on every rank, a RunError that names the parameter and who differs.
void check_replicas(int64_t step, const Run& run, const Mesh& mesh, const Parameters& parameters);

}  // namespace picotron
