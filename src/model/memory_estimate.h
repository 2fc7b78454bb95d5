// How much memory a rank needs, before anything is allocated. Bytes of each number that is kept:
//
//     dtype      weights  gradients  master  moments        master and moments: of what
//     bfloat16   2        4          4       4 + 4          this rank owns, 1 / (dp·cp) of it
//     float32    4        4          -       4 + 4          under ZeRO-1
//     float64    8        8          -       8 + 8
//
// Activations are what layers keep between forward and backward (LayerSaved in llama.h), of every
// microbatch under way at the schedule's deepest point. A layer keeps for each token here
//
//     x, n1, mid, n2: 4 hidden / sp   qkv: (heads + 2 kv heads) · head_dim   out: heads · head_dim
//     gate_up, act: 3 intermediate                 statistics: heads + 2 / sp, 4 bytes each
//
// selective recompute without out, its statistics and act, full recompute x alone; then the
// backward of one layer, or the head's chunk of logits, whichever is larger. See Korthikanti et
// al. 2022, "Reducing Activation Recomputation in Large Transformer Models". Plain numbers in and
// out: no tensors here. Read next: train/plan.h, where the numbers come from.
#pragma once
#include <cstdint>
#include <vector>

#include "core/config.h"
#include "parallel/pipeline_schedule.h"

namespace picotron {

struct RankShape {
  int64_t elements = 0;  // of the flat buffers
  int64_t owned = 0;     // whose optimizer state is here
  // Of a layer, on this rank: heads / tp and so on.
  int64_t hidden = 0, intermediate = 0, heads = 0, key_value_heads = 0, head_dim = 0;
  int64_t vocab = 0;            // rows of the head here; 0: not the last stage
  std::vector<int64_t> layers;  // of each chunk
  int64_t tokens = 0;           // of a microbatch: micro_batch_size · seq_length / cp
  int64_t tp = 1, cp = 1, replicas = 1;
  bool sequence_parallel = false;
  Recompute recompute = Recompute::none;
  OptimizerKind optimizer = OptimizerKind::adamw;
  DType dtype = DType::bfloat16;
  ScheduleOptions schedule = {};
  // Elements of the gradient buckets, in the order in which they are reduced.
  std::vector<int64_t> buckets = {};
};

// Bytes on one rank. In double, for a configuration may ask for more than any machine holds.
struct MemoryEstimate {
  double weights = 0, master = 0, gradients = 0, moments = 0;
  double activations = 0;
  double buffers = 0;  // of communication: what arrives and is not summed yet, and messages
  double gaps = 0;     // in the heap, between blocks that are kept: measured, 0.15 of activations
  double fixed() const { return weights + master + gradients + moments; }
  double total() const { return fixed() + activations + buffers + gaps; }
};

MemoryEstimate estimate_memory(const RankShape& shape);

}  // namespace picotron
