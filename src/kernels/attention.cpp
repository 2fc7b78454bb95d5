// The kernels behind one pair of functions: ATen's for a CPU here, for a GPU in attention_cuda.cpp,
// and our own backward for bf16 on a CPU in attention_cpu.cpp.
#include "kernels/attention.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "core/record.h"
#include "kernels/attention_cpu.h"
#include "kernels/attention_cuda.h"

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

// ATen's bf16 backward sets up a oneDNN product for each small tile of each head, which costs more
// than the tile. Below kShort keys its fp32 one is quicker than that, below kBlocks than our own.
constexpr int64_t kShort = 256, kBlocks = 128;

bool computes_in_blocks(const at::Tensor& q, const at::Tensor& k) {
  return k.size(2) >= kBlocks && attention_cpu_computes(q);
}

// [batch, heads, seq, head_dim], in memory [batch, seq, heads, head_dim].
at::Tensor empty_like_rows(const at::Tensor& x) {
  return at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
}

AttentionGradients aten_cpu_backward(const at::Tensor& dout, const at::Tensor& q,
                                     const at::Tensor& k, const at::Tensor& v,
                                     const AttentionOutput& saved, bool causal, double scale) {
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      dout, q, k, v, saved.out, saved.lse, 0.0, causal, {}, scale);
  return {dq, dk, dv};
}

}  // namespace

AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          bool causal, double scale, std::source_location at) {
  check(k.sizes() == v.sizes() && q.size(1) % k.size(1) == 0,
        "attention: key/value heads divide heads", at);
  const record::Scope scope(entry("attention", q, k, causal, 2), at);
  if (!q.is_cpu()) return attention_cuda(q, k, v, causal, scale);
  auto [out, lse] =
      at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, {}, scale);
  // ATen gives it the layout of q.
  return {out.transpose(1, 2).contiguous().transpose(1, 2), lse};
}

AttentionGradients attention_backward(const at::Tensor& dout, const at::Tensor& q,
                                      const at::Tensor& k, const at::Tensor& v,
                                      const AttentionOutput& saved, bool causal, double scale,
                                      std::source_location at) {
  const record::Scope scope(entry("attention_backward", q, k, causal, 5), at);
  if (!q.is_cpu()) return attention_cuda_backward(dout, q, k, v, saved, causal, scale);
  if (computes_in_blocks(q, k)) {
    const AttentionGradients fresh = {empty_like_rows(q), empty_like_rows(k), empty_like_rows(v)};
    attention_cpu_backward(fresh, dout, q, k, v, saved, causal, scale);
    return fresh;
  }
  if (q.scalar_type() != at::kBFloat16 || k.size(2) >= kShort) {
    return aten_cpu_backward(dout, q, k, v, saved, causal, scale);
  }
  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
  const AttentionGradients d = aten_cpu_backward(wide(dout), wide(q), wide(k), wide(v),
                                                 {wide(saved.out), saved.lse}, causal, scale);
  return {d.dq.to(at::kBFloat16), d.dk.to(at::kBFloat16), d.dv.to(at::kBFloat16)};
}

void attention_backward_into(const AttentionGradients& into, const at::Tensor& dout,
                             const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const AttentionOutput& saved, bool causal, double scale,
                             std::source_location at) {
  if (computes_in_blocks(q, k)) {
    const record::Scope scope(entry("attention_backward", q, k, causal, 5), at);
    attention_cpu_backward(into, dout, q, k, v, saved, causal, scale);
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
