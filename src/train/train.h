// The training loop. Everything below it is a room of its own; here one reads how they meet.
#pragma once
#include <cstdint>
#include <functional>

#include "dist/device.h"
#include "dist/mesh.h"
#include "parallel/data_parallel.h"
#include "parallel/parameter.h"
#include "train/run.h"

namespace picotron {

// What a test may look at while a run goes on. Either may be empty.
struct TrainObserver {
  // After the reductions of a step, before clipping: gradients are sums over dp×cp (of my parts,
  // under ZeRO-1).
  std::function<void(int64_t step, const Parameters&, const Gradients&)> after_backward;
  // After the last update.
  std::function<void(const Parameters&)> at_end;
};

// Trains this rank's part of the run until the last step, max_tokens or a stop request, and saves.
// Returns whether it was stopped on request. Every rank of the world calls it. Throws RunError
// naming the step where loss or norm are not finite.
bool train(const Run& run, const Rendezvous& rendezvous, const Device& device,
           const TrainObserver& observer = {});

}  // namespace picotron
