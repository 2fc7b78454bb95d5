// Pipeline schedules, as data: for each stage a list of what it does, in order.
//
//     1F1B, 3 stages, 4 microbatches (F forward, B backward, numbers are microbatches):
//
//     stage 0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
//     stage 1   .  F0 F1 .  B0 F2 B1 F3 B2 .  B3
//     stage 2   .  .  F0 B0 F1 B1 F2 B2 F3 B3
//
// AFAB (GPipe, Huang et al. 2019) runs all forwards, then all backwards; 1F1B (PipeDream, Narayanan
// et al. 2019; Megatron-LM, 2021) begins a backward as soon as one can be had, so that at most
// `stages` microbatches are kept at once. One stage, which is training without pipeline
// parallelism, gives F B F B … : gradient accumulation is a schedule, not a second loop. One runner
// executes any list (parallel/pipeline_parallel.h).
#pragma once
#include <cstdint>
#include <vector>

namespace picotron {

enum class ActionKind : uint8_t {
  forward,   // of a microbatch through this stage
  backward,  // both halves: input gradient and weight gradients
};

struct Action {
  ActionKind kind;
  int64_t microbatch;
  int chunk = 0;  // of the model, on this stage: interleaved schedules cut a stage into several
  bool operator==(const Action&) const = default;
};

using Schedule = std::vector<Action>;

// All forwards, then all backwards. 0 ≤ stage < stages.
Schedule all_forward_all_backward(int64_t microbatches);
// 1F1B: min(stages − 1 − stage, microbatches) forwards ahead, then forward and backward in turn.
Schedule one_forward_one_backward(int stage, int stages, int64_t microbatches);

}  // namespace picotron
