// Around ATen's two attention kernels on a GPU: pad, repeat, cut, sum, as attention_cuda.h lists.
#include "kernels/attention_cuda.h"

#include <ATen/ATen.h>

#include <cstdint>
#include <limits>

#include "core/error.h"

namespace picotron {
namespace {

bool uses_flash(const at::Tensor& q) {
  check(q.scalar_type() != at::kDouble, "float64 attention is for a CPU");
  return q.scalar_type() != at::kFloat;
}

// Zeros added to head_dim change no product of q and k, and v's are cut off again. A view of a
// larger row may start or step where a vector load may not.
at::Tensor aligned(const at::Tensor& x) {
  constexpr int64_t kElements = 8;
  if (const int64_t rest = x.size(3) % kElements; rest != 0) {
    return at::constant_pad_nd(x, {0, kElements - rest});
  }
  const bool steps = x.stride(3) == 1 && x.stride(2) % kElements == 0 &&
                     x.stride(1) % kElements == 0 && x.stride(0) % kElements == 0;
  const bool starts = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return steps && starts ? x : x.clone(at::MemoryFormat::Contiguous);
}

at::Tensor cut(const at::Tensor& x, int64_t head_dim) {
  return x.size(3) == head_dim ? x : x.slice(3, 0, head_dim);
}

// [batch, heads, seq, head_dim] that lies in memory as [batch, seq, heads, head_dim].
at::Tensor sequence_major(const at::Tensor& x) {
  return x.transpose(1, 2).contiguous().transpose(1, 2);
}

// Each key/value head once per query head that reads it, and the sum of what came back.
at::Tensor repeat_groups(const at::Tensor& x, int64_t heads) {
  return heads == x.size(1) ? x : x.repeat_interleave(heads / x.size(1), 1);
}
at::Tensor sum_groups(const at::Tensor& dx, int64_t key_value_heads) {
  if (key_value_heads == dx.size(1)) return dx;
  return dx.unflatten(1, {key_value_heads, dx.size(1) / key_value_heads}).sum(2);
}

// Rows that only fill a block up have lse +∞, so that their probabilities exp(s − lse) are 0.
at::Tensor fill_blocks(const at::Tensor& lse) {
  constexpr int64_t kBlock = 32;
  const int64_t missing = (kBlock - lse.size(2) % kBlock) % kBlock;
  return at::constant_pad_nd(lse, {0, missing}, std::numeric_limits<double>::infinity());
}

}  // namespace

AttentionOutput attention_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               bool causal, double scale) {
  const at::AutoDispatchBelowAutograd no_autograd;  // its wrappers refuse undefined tensors
  const int64_t head_dim = q.size(3);
  at::Tensor out;
  at::Tensor lse;
  if (uses_flash(q)) {
    const auto result = at::_scaled_dot_product_flash_attention(
        aligned(q), aligned(k), aligned(v), 0.0, causal, /*return_debug_mask=*/false, scale);
    out = std::get<0>(result);
    lse = std::get<1>(result);
  } else {
    const auto result = at::_scaled_dot_product_efficient_attention(
        aligned(q), aligned(repeat_groups(k, q.size(1))), aligned(repeat_groups(v, q.size(1))), {},
        /*compute_log_sumexp=*/true, 0.0, causal, scale);
    out = std::get<0>(result);
    lse = std::get<1>(result).slice(2, 0, q.size(2));
  }
  return {sequence_major(cut(out, head_dim)), lse.contiguous()};
}

AttentionGradients attention_cuda_backward(const at::Tensor& dout, const at::Tensor& q,
                                           const at::Tensor& k, const at::Tensor& v,
                                           const AttentionOutput& saved, bool causal,
                                           double scale) {
  const at::AutoDispatchBelowAutograd no_autograd;
  const int64_t head_dim = q.size(3);
  const int64_t key_value_heads = k.size(1);
  const at::Tensor none;  // no dropout, so no state of its generator; no batch of uneven lengths
  const at::Tensor out = sequence_major(aligned(saved.out));
  const at::Tensor dy = sequence_major(aligned(dout));
  at::Tensor dq;
  at::Tensor dk;
  at::Tensor dv;
  if (uses_flash(q)) {
    std::tie(dq, dk, dv) = at::_scaled_dot_product_flash_attention_backward(
        dy, aligned(q), aligned(k), aligned(v), out, saved.lse.contiguous(), none, none, q.size(2),
        k.size(2), 0.0, causal, none, none, scale);
  } else {
    const auto gradients = at::_scaled_dot_product_efficient_attention_backward(
        dy, aligned(q), aligned(repeat_groups(k, q.size(1))), aligned(repeat_groups(v, q.size(1))),
        none, out, fill_blocks(saved.lse.contiguous()), none, none, 0.0,
        {true, true, true, /*attn_bias=*/false}, causal, scale);
    dq = std::get<0>(gradients);
    dk = sum_groups(std::get<1>(gradients), key_value_heads);
    dv = sum_groups(std::get<2>(gradients), key_value_heads);
  }
  return {cut(dq, head_dim), cut(dk, head_dim), cut(dv, head_dim)};
}

}  // namespace picotron
