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
  return {at::stack({k, v}), cp};
}

// Of tensors [rows, heads, seq/cp, …].
at::Tensor queries_of(const AttentionPiece& piece, const at::Tensor& x) {
  return x.narrow(0, piece.row, piece.rows).narrow(2, piece.query, piece.queries);
}
at::Tensor keys_of(const AttentionPiece& piece, const at::Tensor& x) {
  return x.narrow(0, piece.row, piece.rows).narrow(2, piece.key, piece.keys);
}

std::vector<AttentionPiece> pieces_of(const at::Tensor& q, const DocumentBegins& documents,
                                      const Group& cp, int hops) {
  return attention_pieces(
      documents, {.rows = q.size(0), .tokens = q.size(2), .rank = cp.rank, .ranks = cp.size()},
      hops);
}

// The softmax of both parts, in place of the first. Its `out` is wide. The functions are taken in
// fp64 and rounded: ATen's for vectors and for what is left over differ in the last bit, and which
// one a query meets depends on the shape of its piece.
void merge(AttentionOutput first, const AttentionOutput& second) {
  const at::Tensor one = first.lse.to(at::kDouble), other = second.lse.to(at::kDouble);
  const at::Tensor share = at::sigmoid(other - one).to(first.out.scalar_type()).unsqueeze(3);
  first.out.lerp_(second.out.to(first.out.scalar_type()), share);
  first.lse.copy_(at::logaddexp(one, other));
}

}  // namespace

AttentionOutput ContextParallelAttention::forward(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v,
                                                  const DocumentBegins& documents) const {
  const int ranks = cp->size();
  if (ranks == 1 && documents.empty()) return attention(q, k, v, /*causal=*/true, scale);
  const at::ScalarType wide = wide_of(q.scalar_type());
  const at::Tensor by_tokens = at::empty({q.size(0), q.size(2), q.size(1), q.size(3)},
                                         q.options().dtype(ranks == 1 ? q.scalar_type() : wide));
  const AttentionOutput whole = {by_tokens.transpose(1, 2),
                                 at::empty(q.sizes().slice(0, 3), q.options().dtype(wide))};
  const auto attend = [&](int hops, const at::Tensor& keys, const at::Tensor& values) {
    for (const AttentionPiece& piece : pieces_of(q, documents, *cp, hops)) {
      const AttentionOutput part = attention(queries_of(piece, q), keys_of(piece, keys),
                                             keys_of(piece, values), piece.causal, scale);
      const AttentionOutput so_far = {queries_of(piece, whole.out), queries_of(piece, whole.lse)};
      if (piece.causal) {
        so_far.out.copy_(part.out), so_far.lse.copy_(part.lse);
      } else {
        merge(so_far, part);
      }
    }
  };
  if (ranks == 1) return attend(0, k, v), whole;
  Ring blocks = ring_of(k, v, *cp);
  blocks.start_hop();
  attend(0, k, v);
  for (int hops = 1; hops < ranks; ++hops) {
    blocks.finish_hop();
    if (hops + 1 < ranks) blocks.start_hop();
    attend(hops, blocks.here[0], blocks.here[1]);
  }
  return {whole.out.to(q.scalar_type()), whole.lse};
}

// The sums of a block's dk and dv travel one hop behind it. The first rank it visits begins them;
// after cp − 1 hops more they are home, where the owner adds what its own queries gave.
void ContextParallelAttention::backward(const AttentionGradients& into, const at::Tensor& dout,
                                        const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v, const AttentionOutput& saved,
                                        const DocumentBegins& documents) const {
  const int ranks = cp->size();
  const auto saved_of = [&](const AttentionPiece& piece) {
    return AttentionOutput{queries_of(piece, saved.out), queries_of(piece, saved.lse)};
  };
  if (ranks == 1) {
    for (const AttentionPiece& piece : pieces_of(q, documents, *cp, 0)) {
      attention_backward_into(
          {queries_of(piece, into.dq), keys_of(piece, into.dk), keys_of(piece, into.dv)},
          queries_of(piece, dout), queries_of(piece, q), keys_of(piece, k), keys_of(piece, v),
          saved_of(piece), piece.causal, scale);
    }
    return;
  }
  const at::TensorOptions wide = q.options().dtype(wide_of(q.scalar_type()));
  const at::Tensor dq = at::zeros(q.sizes(), wide);
  using Parts = std::vector<std::pair<AttentionPiece, AttentionGradients>>;
  const auto differentiate = [&](int hops, const at::Tensor& keys, const at::Tensor& values) {
    Parts parts;
    for (const AttentionPiece& piece : pieces_of(q, documents, *cp, hops)) {
      parts.emplace_back(piece, attention_backward(queries_of(piece, dout), queries_of(piece, q),
                                                   keys_of(piece, keys), keys_of(piece, values),
                                                   saved_of(piece), piece.causal, scale));
    }
    return parts;
  };
  const auto add = [&](const Parts& parts, const at::Tensor& dk_dv) {
    for (const auto& [piece, d] : parts) {
      queries_of(piece, dq).add_(d.dq);
      keys_of(piece, dk_dv[0]).add_(d.dk);
      keys_of(piece, dk_dv[1]).add_(d.dv);
    }
  };
  Ring blocks = ring_of(k, v, *cp);
  blocks.start_hop();
  const at::Tensor own = at::zeros(blocks.here.sizes(), wide);
  add(differentiate(0, k, v), own);
  Ring sums(at::zeros(blocks.here.sizes(), wide), *cp);
  for (int hops = 1; hops < ranks; ++hops) {
    blocks.finish_hop();
    if (hops + 1 < ranks) blocks.start_hop();
    const Parts parts = differentiate(hops, blocks.here[0], blocks.here[1]);
    if (hops > 1) sums.finish_hop();
    add(parts, sums.here);
    sums.start_hop();
  }
  sums.finish_hop();
  into.dq.copy_(dq);
  into.dk.copy_(sums.here[0] + own[0]);
  into.dv.copy_(sums.here[1] + own[1]);
}

AttentionOutput FusedAttention::forward(const at::Tensor& qkv, const TokenBatch& batch) const {
  const auto [q, k, v] = split_heads(qkv, batch.rows, key_value_heads, head_dim);
  return attention.forward(q, k, v, batch.documents);
}

at::Tensor FusedAttention::backward(const at::Tensor& dout, const at::Tensor& qkv,
                                    const AttentionOutput& saved, const TokenBatch& batch) const {
  const auto [q, k, v] = split_heads(qkv, batch.rows, key_value_heads, head_dim);
  const at::Tensor dqkv = at::empty_like(qkv);
  const auto [dq, dk, dv] = split_heads(dqkv, batch.rows, key_value_heads, head_dim);
  attention.backward({dq, dk, dv}, dout.view({batch.rows, -1, q.size(1), head_dim}).transpose(1, 2),
                     q, k, v, saved, batch.documents);
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
