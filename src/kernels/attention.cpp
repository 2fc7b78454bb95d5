// The kernels behind one pair of functions: on a GPU those of attention_cuda.cpp, on a CPU those of
// attention_cpu.cpp, but for bf16 what instructions for its products do faster.
#include "kernels/attention.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "core/record.h"
#include "kernels/attention_amx.h"
#include "kernels/attention_cpu.h"
#include "kernels/attention_cuda.h"
#include "kernels/attention_heads.h"
#include "kernels/attention_onednn.h"

namespace picotron {
namespace {

// Two products forward, five backward, of 2·seq·key_seq·head_dim each; half under a causal mask.
record::Entry entry(const char* what, const at::Tensor& q, const at::Tensor& k, bool causal,
                    int products) {
  const double all = 2.0 * products * q.size(0) * q.size(1) * q.size(2) * k.size(2) * q.size(3);
  return {.kind = record::Kind::attention,
          .what = what,
          .shape = {q.size(0), q.size(1), q.size(2), q.size(3)},
          .flops = causal ? all / 2 : all};
}

void check_shapes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                  std::source_location at) {
  check(k.sizes() == v.sizes() && q.size(1) % k.size(1) == 0,
        "attention: key/value heads divide heads", at);
  check(!causal || q.size(2) == k.size(2), "attention: a causal mask is square", at);
}

// Of fewer queries or keys tiles would be mostly zeros, and vectors do not round probabilities.
bool fills_tiles(const at::Tensor& q, const at::Tensor& k) {
  return q.size(2) >= 32 && k.size(2) >= 32 && attention_amx_computes(q);
}

// From so many keys on, oneDNN's bf16 products are quicker than loops over fp32.
constexpr int64_t kProducts = 128;

void cpu_backward(const AttentionGradients& into, const at::Tensor& dout, const at::Tensor& q,
                  const at::Tensor& k, const at::Tensor& v, const AttentionOutput& saved,
                  bool causal, double scale) {
  if (fills_tiles(q, k))
    attention_amx_backward(into, dout, q, k, v, saved, causal, scale);
  else if (k.size(2) >= kProducts && attention_onednn_computes(q))
    attention_onednn_backward(into, dout, q, k, v, saved, causal, scale);
  else
    attention_cpu_backward(into, dout, q, k, v, saved, causal, scale);
}

// With AMX, for the few queries of text that is being generated: ATen shares their heads out.
bool aten_is_quicker(const at::Tensor& q, const at::Tensor& k) {
  return k.size(2) >= kProducts && attention_amx_computes(q);
}

}  // namespace

AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          bool causal, double scale, std::source_location at) {
  check_shapes(q, k, v, causal, at);
  const record::Scope scope(entry("attention", q, k, causal, 2), at);
  if (!q.is_cpu()) return attention_cuda(q, k, v, causal, scale);
  if (fills_tiles(q, k)) return attention_amx(q, k, v, causal, scale);
  if (!aten_is_quicker(q, k)) return attention_cpu(q, k, v, causal, scale);
  auto [out, lse] =
      at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, {}, scale);
  // ATen gives it the layout of q.
  return {out.transpose(1, 2).contiguous().transpose(1, 2), lse};
}

AttentionGradients attention_backward(const at::Tensor& dout, const at::Tensor& q,
                                      const at::Tensor& k, const at::Tensor& v,
                                      const AttentionOutput& saved, bool causal, double scale,
                                      std::source_location at) {
  check_shapes(q, k, v, causal, at);
  const record::Scope scope(entry("attention_backward", q, k, causal, 5), at);
  if (!q.is_cpu()) return attention_cuda_backward(dout, q, k, v, saved, causal, scale);
  const AttentionGradients fresh = {empty_like_rows(q), empty_like_rows(k), empty_like_rows(v)};
  cpu_backward(fresh, dout, q, k, v, saved, causal, scale);
  return fresh;
}

void attention_backward_into(const AttentionGradients& into, const at::Tensor& dout,
                             const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const AttentionOutput& saved, bool causal, double scale,
                             std::source_location at) {
  if (q.is_cpu()) {
    check_shapes(q, k, v, causal, at);
    const record::Scope scope(entry("attention_backward", q, k, causal, 5), at);
    cpu_backward(into, dout, q, k, v, saved, causal, scale);
    return;
  }
  const AttentionGradients fresh = attention_backward(dout, q, k, v, saved, causal, scale, at);
  into.dq.copy_(fresh.dq), into.dk.copy_(fresh.dk), into.dv.copy_(fresh.dv);
}

Heads split_heads(const at::Tensor& qkv, int64_t rows, int64_t key_value_heads, int64_t head_dim) {
  const at::Tensor all = qkv.view({rows, qkv.size(0) / rows, -1, head_dim}).transpose(1, 2);
  const int64_t heads = all.size(1) - 2 * key_value_heads;
  return {all.narrow(1, 0, heads), all.narrow(1, heads, key_value_heads),
          all.narrow(1, heads + key_value_heads, key_value_heads)};
}

}  // namespace picotron
