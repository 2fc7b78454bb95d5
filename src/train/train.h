// The training loop. Everything below it is a room of its own; here one reads how they meet.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "dist/device.h"
#include "dist/mesh.h"
#include "model/llama.h"
#include "parallel/data_parallel.h"
#include "train/metrics.h"
#include "train/run.h"

namespace picotron {

// What one rank holds at a moment of a step.
struct StepView {
  int64_t step;  // from 1
  const Llama& model;
  const Gradients& gradients;
  const Mesh& mesh;
};

// Who watches a run: verify, explain, tests. Each may be empty; of a step's moments every rank is
// told, and all at the same one, so that a collective may be called there.
struct TrainObserver {
  // After the reductions, before clipping: gradients are sums over dp×cp (of my parts, under
  // ZeRO-1).
  std::function<void(const StepView&)> after_backward;
  std::function<void(const StepView&)> after_update;
  std::function<void(const StepMetrics&)> after_reading;
};

struct TrainResult {
  bool stopped = false;  // on request, before the last step
  std::string folder;    // of the checkpoint written last; "" in a rehearsal
};

// Trains this rank's part of the run until the last step, max_tokens or a stop request, and saves.
// Every rank of the world calls it. Throws RunError naming the step where loss or norm are not
// finite.
TrainResult train(const Run& run, const Rendezvous& rendezvous, const Device& device,
                  const TrainObserver& observer = {});

}  // namespace picotron
