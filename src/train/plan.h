// A run before it runs: who holds what, how much memory, how many bytes, how long stages wait.
//
//     Config ─▶ layers, schedule, mesh (layout.h) ─▶ Llama on the meta device ─▶ Parameter lists
//                     │                                                              │
//                     ▼                                                              ▼
//             schedule_check: timeline, bubble    memory_estimate: bytes by kind, communication
//
// Weights are those of the Parameter lists themselves, which the model declares for each rank as in
// a run; a tensor of the meta device has a shape and no memory. Read next: communication.h,
// model/memory_estimate.h, plan_search.h; docs/planning.md shows it all on an example.
#pragma once
#include <string>
#include <vector>

#include "core/config.h"
#include "model/architectures.h"
#include "model/memory_estimate.h"
#include "parallel/data_parallel.h"
#include "parallel/schedule_check.h"
#include "train/communication.h"

namespace picotron {

// What a rank's Parameter list says.
struct Inventory {
  int64_t parameters = 0;             // numbers of the model that are here
  int64_t elements = 0;               // of the flat buffers: with padding between Weights
  int64_t reduced = 0;                // of them in buckets: all but a tied copy
  std::vector<int64_t> buckets = {};  // elements of each
};
// `stage` of pp, `tp_rank` of tp.
Inventory take_inventory(const Config& config, const LlamaConfig& architecture, int stage,
                         int tp_rank);

// Ranks that hold equally much.
struct RankPlan {
  std::vector<int> global_ranks;
  int stage = 0;
  std::vector<Range> layers;  // of each chunk
  bool has_embedding = false, has_head = false;
  int64_t heads = 0, key_value_heads = 0, intermediate = 0, vocab = 0;  // here
  Inventory inventory;
  MemoryEstimate memory;
};

struct Plan {
  Config config;
  LlamaConfig architecture;
  DType dtype = DType::bfloat16;
  std::vector<RankPlan> ranks;
  std::vector<Volume> volumes;
  ScheduleReport schedule;
};

Plan make_plan(const Config& config, const LlamaConfig& architecture, DType dtype);
std::string describe(const Plan& plan);

// Of the rank that needs most.
MemoryEstimate most_memory(const Config& config, const LlamaConfig& architecture, DType dtype);

RankShape rank_shape(const Config& config, const LlamaConfig& architecture, DType dtype,
                     const Inventory& inventory, int stage, int tp_rank);
// Of the schedule's actions, for virtual stages of this model.
ActionCosts action_costs(const Config& config, const LlamaConfig& architecture);

std::string bytes_text(double bytes);  // "1.74 GB", "12.3 MB"

}  // namespace picotron
