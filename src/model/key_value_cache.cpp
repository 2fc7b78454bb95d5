// One layer's turn.
#include "model/key_value_cache.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace picotron {

AttentionOutput KeyValueCache::attend(const FusedAttention& attention, const at::Tensor& qkv,
                                      int64_t rows) {
  const auto [q, k, v] = split_heads(qkv, rows, attention.key_value_heads, attention.head_dim);
  const int64_t columns = q.size(2), end = size_ + columns;
  check(end <= capacity_, "the cache has room for every token");
  check(size_ == 0 || columns == 1, "tokens after the first ones come one at a time");
  Kept& kept = layers_.at(next_layer_);
  if (!kept.keys.defined()) {
    kept.keys = at::empty({rows, k.size(1), capacity_, k.size(3)}, k.options());
    kept.values = at::empty_like(kept.keys);
  }
  kept.keys.narrow(2, size_, columns).copy_(k);
  kept.values.narrow(2, size_, columns).copy_(v);
  const AttentionOutput out =
      picotron::attention(q, kept.keys.narrow(2, 0, end), kept.values.narrow(2, 0, end),
                          /*causal=*/columns > 1, attention.attention.scale);
  if (++next_layer_ == layers_.size()) next_layer_ = 0, size_ = end;
  return out;
}

}  // namespace picotron
