// A step of training, told from the record in the order it happened: read beside the source, it is
// the program in execution order.
//
//     forward · microbatch 0, chunk 0                                    an action of the schedule
//       layer 0                                                          a part of the model
//         product     o_proj  x [24, 8 of 16] · W[24, 8 of 16]ᵀ → y [24, 24] partial(tp)
//         all_reduce  o_proj  [24, 24] partial(tp) → sum   over tp {0, 1}, 4608 bytes sent
//
// `8 of 16`: this rank has 8 of the 16 that the whole tensor has. partial(tp): each rank of tp has
// a summand. The model is the small one of train/verify.h, its ranks are threads, and each one's
// entries (core/record.h) are put into words while its model still knows the names of its weights.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/record.h"
#include "train/verify.h"

namespace picotron {

// Of a step, in this order.
enum class Phase : uint8_t {
  schedule,  // forwards, backwards, messages, reductions of buckets
  clip,      // the gradient norm
  update,    // optimizer, and new values to those who do not own them
  reading    // the loss, summed over the world
};

// An entry of the record, and what it means.
struct Event {
  record::Entry entry;
  Phase phase = Phase::schedule;
  // The action of the schedule it belongs to: "forward", "send_activation"; "" in other phases.
  std::string action;
  int64_t microbatch = 0, chunk = 0;
  std::string part;    // of the model: "layer 3", "embedding", "head and loss"; "" where none
  std::string weight;  // "q_proj, k_proj, v_proj"; "" where none
  std::string text;    // shapes with their sharding, group, bytes
};

struct RankStory {
  int global_rank = 0;
  std::string place;          // "dp 0, tp 1"; "" in a world of one
  std::vector<Event> events;  // in the order they began
};

// Trains `step` steps and returns what each rank did in the last of them, by global rank. RunError
// where a rank fails.
std::vector<RankStory> explain_step(const ShrunkRun& shrunk, int64_t step);

// Lines with two levels of headings: action or phase, then part of the model. The last one has the
// bytes sent.
std::vector<std::string> tell(const RankStory& story);

}  // namespace picotron
