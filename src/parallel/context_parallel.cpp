// The ring, and what each rank computes at each of its hops, forward and backward.
#include "parallel/context_parallel.h"

#include <ATen/ATen.h>

#include <source_location>
#include <utility>

#include "core/error.h"
#include "dist/collectives.h"

namespace picotron {
namespace {

// Partial results are summed in it and rounded once.
at::ScalarType wide_of(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// A block on its way around the ranks: one buffer here, read and sent to the next rank, and one
// arriving from the rank before.
struct Ring {
  const Group& cp;
  at::Tensor here, arriving;
  Work hop = {};

  Ring(const at::Tensor& first, const Group& group)
      : cp(group), here(first), arriving(at::empty_like(first)) {}
  void start_hop(std::source_location at = std::source_location::current()) {
    const int ranks = cp.size();
    hop = send_receive({.sent = here,
                        .to = (cp.rank + 1) % ranks,
                        .received = arriving,
                        .from = (cp.rank + ranks - 1) % ranks},
                       cp, at);
  }
  void finish_hop() {
    hop.wait();
    std::swap(here, arriving);
  }
};

// Keys and values of one rank in one buffer [2, rows, kv heads, seq/cp, head_dim]: one message.
Ring ring_of(const at::Tensor& k, const at::Tensor& v, const Group& cp) {
  check(k.size(2) % 2 == 0, "context parallel gives each rank two chunks of equal length");
  return {at::stack({k, v}), cp};
}

// What the mask leaves where my queries meet the block that has made `hops` hops: a rectangle, half
// of the scores whosever block it is. Cuts it out of tensors [rows, heads, seq/cp, …].
struct Rectangle {
  int64_t first_query, queries, keys;

  Rectangle(int hops, const Group& cp, int64_t seq) {
    const bool of_lower_rank = hops <= cp.rank;  // rank cp.rank − hops; else it went past the end
    first_query = of_lower_rank ? 0 : seq / 2;
    queries = seq - first_query;
    keys = of_lower_rank ? seq / 2 : seq;
  }
  at::Tensor of_queries(const at::Tensor& x) const { return x.narrow(2, first_query, queries); }
  at::Tensor of_keys(const at::Tensor& x) const { return x.narrow(2, 0, keys); }
};

// The softmax of both parts, in place of the first. Its `out` is wide.
void merge(AttentionOutput first, const AttentionOutput& second) {
  const at::Tensor share = at::sigmoid(second.lse - first.lse).unsqueeze(3);
  first.out.lerp_(second.out.to(first.out.scalar_type()), share);
  at::logaddexp_out(first.lse, first.lse, second.lse);
}

}  // namespace

AttentionOutput ContextParallelAttention::forward(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v) const {
  const int ranks = cp->size();
  if (ranks == 1) return attention(q, k, v, /*causal=*/true, scale);
  Ring blocks = ring_of(k, v, *cp);
  blocks.start_hop();
  const AttentionOutput own = attention(q, k, v, /*causal=*/true, scale);
  const AttentionOutput whole = {own.out.to(wide_of(q.scalar_type())), own.lse};
  for (int hops = 1; hops < ranks; ++hops) {
    blocks.finish_hop();
    if (hops + 1 < ranks) blocks.start_hop();
    const Rectangle part(hops, *cp, q.size(2));
    merge({part.of_queries(whole.out), part.of_queries(whole.lse)},
          attention(part.of_queries(q), part.of_keys(blocks.here[0]), part.of_keys(blocks.here[1]),
                    /*causal=*/false, scale));
  }
  return {whole.out.to(q.scalar_type()), whole.lse};
}

// The sums of a block's dk and dv travel one hop behind it. The first rank it visits begins them;
// after cp − 1 hops more they are home, where the owner adds what its own queries gave.
void ContextParallelAttention::backward(const AttentionGradients& into, const at::Tensor& dout,
                                        const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v, const AttentionOutput& saved) const {
  const int ranks = cp->size();
  if (ranks == 1) {
    attention_backward_into(into, dout, q, k, v, saved, /*causal=*/true, scale);
    return;
  }
  const at::ScalarType wide = wide_of(q.scalar_type());
  Ring blocks = ring_of(k, v, *cp);
  blocks.start_hop();
  const AttentionGradients own = attention_backward(dout, q, k, v, saved, /*causal=*/true, scale);
  const at::Tensor dq = own.dq.to(wide);
  Ring sums(at::zeros(blocks.here.sizes(), q.options().dtype(wide)), *cp);
  for (int hops = 1; hops < ranks; ++hops) {
    blocks.finish_hop();
    if (hops + 1 < ranks) blocks.start_hop();
    const Rectangle part(hops, *cp, q.size(2));
    const AttentionGradients d = attention_backward(
        part.of_queries(dout), part.of_queries(q), part.of_keys(blocks.here[0]),
        part.of_keys(blocks.here[1]), {part.of_queries(saved.out), part.of_queries(saved.lse)},
        /*causal=*/false, scale);
    part.of_queries(dq).add_(d.dq);
    if (hops > 1) sums.finish_hop();
    part.of_keys(sums.here[0]).add_(d.dk);
    part.of_keys(sums.here[1]).add_(d.dv);
    sums.start_hop();
  }
  sums.finish_hop();
  into.dq.copy_(dq);
  into.dk.copy_(sums.here[0] + own.dk);
  into.dv.copy_(sums.here[1] + own.dv);
}

AttentionOutput FusedAttention::forward(const at::Tensor& qkv, int64_t rows) const {
  const auto [q, k, v] = split_heads(qkv, rows, key_value_heads, head_dim);
  return attention.forward(q, k, v);
}

at::Tensor FusedAttention::backward(const at::Tensor& dout, const at::Tensor& qkv,
                                    const AttentionOutput& saved) const {
  const int64_t rows = saved.out.size(0);
  const auto [q, k, v] = split_heads(qkv, rows, key_value_heads, head_dim);
  const at::Tensor dqkv = at::empty_like(qkv);
  const auto [dq, dk, dv] = split_heads(dqkv, rows, key_value_heads, head_dim);
  attention.backward({dq, dk, dv}, dout.view({rows, -1, q.size(1), head_dim}).transpose(1, 2), q, k,
                     v, saved);
  return dqkv;
}

at::Tensor FusedAttention::merge_heads(const AttentionOutput& saved) {
  return saved.out.transpose(1, 2).flatten(0, 1).flatten(1, 2);
}

RingBytes ring_bytes(at::IntArrayRef key_shape, at::ScalarType dtype, int cp_size) {
  const int64_t elements = (cp_size - 1) * 2 * c10::multiply_integers(key_shape);
  const auto blocks = elements * static_cast<int64_t>(c10::elementSize(dtype));
  const auto sums = elements * static_cast<int64_t>(c10::elementSize(wide_of(dtype)));
  return {.forward = blocks, .backward = blocks + sums};
}

}  // namespace picotron
