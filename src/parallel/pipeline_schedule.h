// Pipeline schedules, as data: for each stage a list of what it does, in order.
//
//     1F1B, 3 stages, 4 microbatches (F forward, B backward, numbers are microbatches):
//
//     stage 0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
//     stage 1   .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
//     stage 2   .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
//
// A list holds computation and messages alike, so that the runner (parallel/pipeline_parallel.h)
// has nothing to decide, and the checker (parallel/schedule_check.h) proves what really runs. A
// schedule's own function writes the computation; add_messages() puts in the rest by one rule. One
// stage, which is training without pipeline parallelism, gives F B F B … : gradient accumulation is
// a schedule, not a second loop. Read next: docs/pipeline-parallel.md.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/config.h"

namespace picotron {

enum class ActionKind : uint8_t {
  forward,          // of a microbatch through a chunk of this stage
  backward,         // both halves
  backward_input,   // the gradient of the chunk's input, which the stage before waits for
  backward_weight,  // the gradients of its weights, which nobody waits for before the step ends
  // Receives are started, not awaited: the computation that needs the tensor waits for it. A send
  // follows what computed its tensor.
  receive_activation,  // the input of the chunk
  send_activation,     // its output
  receive_gradient,    // of its output
  send_gradient,       // of its input
};

struct Action {
  ActionKind kind;
  int64_t microbatch;
  int chunk = 0;  // of the model, on this stage: interleaved schedules cut a stage into several
  bool operator==(const Action&) const = default;
};

using Schedule = std::vector<Action>;

// Virtual stage v = chunk · stages + stage holds the v-th part of the layers: with more chunks than
// one a microbatch goes round the ring of stages as many times.
struct ScheduleOptions {
  PpEngine engine = PpEngine::one_f_one_b;
  int stage = 0, stages = 1;
  int chunks = 1;  // of each stage; more than 1 is for PpEngine::interleaved alone
  int64_t microbatches = 1;
  bool forward_only = false;  // validation: the forwards alone, whatever the engine
  int virtual_stages() const { return stages * chunks; }
  int virtual_stage(int chunk) const { return chunk * stages + stage; }
};

//   afab         GPipe (Huang et al. 2019): all forwards, all backwards; keeps every microbatch
//   1f1b         PipeDream-flush (Narayanan et al. 2021): as many forwards ahead as stages are
//                behind, then a backward after each forward; keeps at most `stages` microbatches
//   interleaved  the same on virtual stages (Megatron-LM): the pipeline fills and empties `chunks`
//                times faster, for as many times the messages; any number of microbatches
//   zb-h1        1F1B whose backward is split (Zero Bubble, Qi et al. 2023): weight gradients wait
//                for the gaps of the end; stage s keeps s of them back, so that all keep `stages`
// BrokenInvariant where the options do not fit.
Schedule make_schedule(const ScheduleOptions& options);

// The rule of messages: an input's receive is started one computation before its own, so that it
// arrives meanwhile; an output is sent as soon as it is there. Tensors of a link (two neighbours in
// the ring, activations or gradients) are sent and received in one order.
Schedule add_messages(const Schedule& computation, const ScheduleOptions& options);

// As many sends of a link may be under way: the next one waits until the first of them has ended,
// which bounds the tensors that are kept for sends.
inline constexpr size_t kSendsUnderWay = 2;

bool is_message(ActionKind kind);
bool is_send(ActionKind kind);         // of either tensor
const char* name_of(ActionKind kind);  // "forward", "send_gradient": string literals

// How many layers each virtual stage has, at least one. Minimises the largest cost, where a layer
// costs 1, the first virtual stage `embedding` more and the last one `head` more; among such splits
// the one with the smallest sum of squares, and of equals the first ones are longer. Without costs
// (`balance` "layers") that is the even split. BrokenInvariant where layers < virtual_stages.
std::vector<int64_t> split_layers(int64_t layers, int virtual_stages, double embedding = 0,
                                  double head = 0);

}  // namespace picotron
