// Attention: softmax(q kᵀ · scale + causal mask) v, without ever writing the [seq, seq] matrix
// (FlashAttention, Dao et al. 2022). The forward also returns lse, the logarithm of each row's
// softmax denominator: from it the backward recomputes the probabilities, and ring attention merges
// partial results (parallel/context_parallel.h).
//
//     s  = q kᵀ scale       p = exp(s − lse)       out = p v
//     dv = pᵀ dout          ds = p ∘ (dout vᵀ − rowsum(dout ∘ out))
//     dq = ds k scale       dk = dsᵀ q scale
//
// Grouped-query attention: num_key_value_heads divides num_heads, and query head h reads key/value
// head h · num_key_value_heads / num_heads; nothing is repeated in memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <source_location>

namespace picotron {

struct AttentionOutput {
  // [batch, heads, seq, head_dim], memory laid out as [batch, seq, heads, head_dim]
  at::Tensor out;
  at::Tensor lse;  // [batch, heads, seq], natural logarithm, fp32 (fp64 for fp64 inputs)
};
struct AttentionGradients {
  at::Tensor dq, dk, dv;  // shapes of q, k, v
};

// q [batch, heads, seq, head_dim]; k, v [batch, key/value heads, key seq, head_dim]; strided views
// are fine. causal: query i sees keys 0..i (seq == key seq). scale: usually 1/√head_dim.
AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          bool causal, double scale,
                          std::source_location at = std::source_location::current());

// `out` and `lse` may come from a larger softmax of which k, v are a part (ring attention): the
// result is then this part's contribution to the gradients.
AttentionGradients attention_backward(const at::Tensor& dout, const at::Tensor& q,
                                      const at::Tensor& k, const at::Tensor& v,
                                      const AttentionOutput& saved, bool causal, double scale,
                                      std::source_location at = std::source_location::current());

// The same, written where `into` lies: views of q's, k's and v's shapes and dtype, for instance of
// the gradient of one fused product.
void attention_backward_into(const AttentionGradients& into, const at::Tensor& dout,
                             const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const AttentionOutput& saved, bool causal, double scale,
                             std::source_location at = std::source_location::current());

// The heads of a fused product [rows · columns, (heads + 2 key/value heads) · head_dim], as views
// of it: [rows, heads, columns, head_dim].
struct Heads {
  at::Tensor q, k, v;
};
Heads split_heads(const at::Tensor& qkv, int64_t rows, int64_t key_value_heads, int64_t head_dim);

}  // namespace picotron
