// How much memory a rank needs, before anything is allocated. Bytes per stored number:
//
//     dtype      weights  gradients  optimizer (master, m, v; over the replicas under ZeRO-1)
//     bfloat16   2        4          4 + 4 + 4
//     float32    4        4              4 + 4
//     float64    8        8              8 + 8
//
// Activations are what a layer keeps between forward and backward (LayerSaved in llama.h), for each
// token
//
//     x, n1, mid, n2: 4 hidden    qkv: (heads + 2 kv heads) · head_dim    out: heads · head_dim
//     gate_up, act: 3 intermediate            statistics: (heads + 2) · 4 bytes
//
// plus the larger of the head's chunk of logits and one layer's backward. See also Korthikanti et
// al. 2022, "Reducing Activation Recomputation in Large Transformer Models". Plain numbers in and
// out: no tensors here.
#pragma once
#include <cstdint>

#include "core/config.h"
#include "model/architectures.h"

namespace picotron {

struct RunShape {
  int64_t parameters = 0;  // stored: a tied head once
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, key_value_heads = 0, head_dim = 0,
          vocab = 0;
  int64_t tokens = 0;  // of a micro batch: micro_batch_size · seq_length
  int64_t replicas = 1;
  int64_t zero_stage = 1;
  DType dtype = DType::bfloat16;
};

// Bytes on one rank. In double, for a configuration may ask for more than any machine holds.
struct MemoryEstimate {
  double weights = 0, gradients = 0, optimizer = 0, activations = 0;
  double total() const { return weights + gradients + optimizer + activations; }
};

RunShape run_shape(const Config& config, const LlamaConfig& model, DType dtype);
MemoryEstimate estimate_memory(const RunShape& shape);

}  // namespace picotron
