// Keys and values of the tokens a model has read, so that the next one costs a forward of itself
// alone: its queries attend to what is kept. n tokens cost O(n) forwards of one token instead of
// O(n) of the whole text; kept are 2 · layers · n · key/value heads · head_dim numbers per row.
//
//     first   [t0 t1 t2 t3]  causal among themselves     kept: 4
//     then              [t4] attends to all five          kept: 5  …
//
// A TokenBatch carries it through the layers (parallel/pipeline_parallel.h); each takes its own
// part, in order. Read next: model/sampling.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "parallel/context_parallel.h"

namespace picotron {

class KeyValueCache {
 public:
  // Of a whole model on one rank, for at most `capacity` tokens a row.
  KeyValueCache(int64_t layers, int64_t capacity)
      : layers_(static_cast<size_t>(layers)), capacity_(capacity) {}

  int64_t size() const { return size_; }  // tokens of each row
  int64_t capacity() const { return capacity_; }
  void clear() { size_ = 0; }

  // The attention of the next layer: qkv [rows · columns, (heads + 2 kv heads) · head_dim], rotated
  // by positions size() and up. Keeps its keys and values, and attends to all that are kept. Many
  // columns at once while the cache is empty, then one at a time.
  AttentionOutput attend(const FusedAttention& attention, const at::Tensor& qkv, int64_t rows);

 private:
  struct Kept {
    at::Tensor keys, values;  // [rows, kv heads, capacity, head_dim]
  };
  std::vector<Kept> layers_;
  size_t next_layer_ = 0;
  int64_t capacity_, size_ = 0;
};

}  // namespace picotron
