// Context parallel: the tokens of a sequence are cut over the ranks of cp, and only attention must
// know. Each rank keeps its queries; keys and values travel around a ring, one block arriving while
// the one before is computed (Liu et al. 2023, "Ring Attention"). A causal mask would leave the
// first ranks idle, so the sequence is cut in 2·cp chunks and rank r holds chunks r and 2·cp−1−r
// ("zig-zag": Zhu 2024, ring-flash-attention; Llama 3, §3.3.2):
//
//     keys        0  1  2  3      rank 0 holds 0 and 3, rank 1 holds 1 and 2      \ causal  # all
//     queries 0   \               own block        causal, as if it were a short sequence
//             1   #  \            from rank s < r  all my queries × its first half
//             2   #  #  \         from rank s > r  my second half × all its keys
//             3   #  #  #  \      so every hop costs every rank the same
//
// Which part of it a rank computes when, documents masked or not: parallel/attention_pieces.h.
// The softmax of the whole from those of its parts (o, l = log Σ exp of the scores):
//     l = log(e^l₁ + e^l₂)        o = e^(l₁−l) o₁ + e^(l₂−l) o₂ = o₁ + σ(l₂−l₁)·(o₂−o₁)
#pragma once
#include <ATen/core/Tensor.h>

#include "dist/mesh.h"
#include "kernels/attention.h"
#include "parallel/token_batch.h"

namespace picotron {

struct ContextParallelAttention {
  const Group* cp = nullptr;  // outlives the layer
  double scale = 1;           // of the scores, usually 1/√head_dim

  // q [rows, heads, seq/cp, head_dim], k and v [rows, kv heads, seq/cp, head_dim], in zig-zag order
  // and rotated by their positions in the whole sequence; strided views are fine. seq/cp is even
  // where cp > 1. Returns out and lse of my queries over the whole sequence.
  // fwd: ring of [k; v] (cp)
  AttentionOutput forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const DocumentBegins& documents = {}) const;

  // `saved`: what forward returned. Writes dq, dk, dv where `into` lies (views of q's, k's and v's
  // shapes): of my queries and of my keys and values, the latter summed over the queries of every
  // rank.  bwd: ring of [k; v] and, one hop behind, of [dk; dv] (cp)
  void backward(const AttentionGradients& into, const at::Tensor& dout, const at::Tensor& q,
                const at::Tensor& k, const at::Tensor& v, const AttentionOutput& saved,
                const DocumentBegins& documents = {}) const;
};

// The same for a layer, whose q, k and v are one product: on this rank qkv [tokens, (heads + 2 kv
// heads) · head_dim], out and dout [tokens, heads · head_dim], tokens = rows · seq/cp.
struct FusedAttention {
  ContextParallelAttention attention = {};
  int64_t key_value_heads = 1, head_dim = 1;

  AttentionOutput forward(const at::Tensor& qkv, const TokenBatch& batch) const;
  at::Tensor backward(const at::Tensor& dout, const at::Tensor& qkv, const AttentionOutput& saved,
                      const TokenBatch& batch) const;           // → dqkv
  static at::Tensor merge_heads(const AttentionOutput& saved);  // → out
};

// Bytes that each rank sends in one call. `key_shape`: of a rank's k. With b = bytes of k and v
// together, and w of them in fp32 (fp64 for float64):
//     forward (cp−1)·b        backward (cp−1)·(b + w)
struct RingBytes {
  int64_t forward = 0, backward = 0;
};
RingBytes ring_bytes(at::IntArrayRef key_shape, at::ScalarType dtype, int cp_size);

}  // namespace picotron
