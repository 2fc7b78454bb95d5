// See attention_amx.h.
#include "kernels/attention_amx.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "kernels/amx/attention.h"
#include "kernels/attention_heads.h"
#include "kernels/matmul_amx.h"

namespace picotron {
namespace {

using amx::AttentionShape, cpu::bf16;

AttentionShape shape_of(const at::Tensor& q, const at::Tensor& k, bool causal, double scale) {
  return {.heads = q.size(1) / k.size(1),
          .queries = q.size(2),
          .keys = k.size(2),
          .dim = q.size(3),
          .causal = causal,
          .scale = static_cast<float>(scale)};
}

// Calls task(sequence, key/value head, its first query head, workspace) for each.
template <class F>
void for_heads(const at::Tensor& k, const AttentionShape& shape, int64_t workspace_bytes, F task) {
  at::parallel_for(0, k.size(0) * k.size(1), 1, [&](int64_t begin, int64_t end) {
    const at::Tensor workspace = at::empty({workspace_bytes}, at::kByte);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i % k.size(1);
      task(i / k.size(1), head, head * shape.heads, workspace.data_ptr());
    }
  });
}

}  // namespace

bool attention_amx_computes(const at::Tensor& q) {
  return q.is_cpu() && q.scalar_type() == at::kBFloat16 && has_amx();
}

AttentionOutput attention_amx(const at::Tensor& q_view, const at::Tensor& k_view,
                              const at::Tensor& v_view, bool causal, double scale) {
  const at::Tensor q = whole_rows(q_view), k = whole_rows(k_view), v = whole_rows(v_view);
  const AttentionShape shape = shape_of(q, k, causal, scale);
  const AttentionOutput result = {empty_like_rows(q),
                                  at::empty(q.sizes().slice(0, 3), q.options().dtype(at::kFloat))};
  for_heads(k, shape, amx::forward_workspace(shape),
            [&](int64_t sequence, int64_t head, int64_t query_head, void* workspace) {
              amx::attention_forward({.shape = shape,
                                      .q = head_rows<const bf16>(q, sequence, query_head),
                                      .k = head_rows<const bf16>(k, sequence, head),
                                      .v = head_rows<const bf16>(v, sequence, head),
                                      .out = head_rows<bf16>(result.out, sequence, query_head),
                                      .lse = head_rows<float>(result.lse, sequence, query_head)},
                                     workspace);
            });
  return result;
}

void attention_amx_backward(const AttentionGradients& into, const at::Tensor& dout,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOutput& saved, bool causal, double scale) {
  const BackwardInputs in = backward_inputs(into, dout, q, k, v, saved);
  const AttentionShape shape = shape_of(q, k, causal, scale);
  for_heads(k, shape, amx::backward_workspace(shape),
            [&](int64_t sequence, int64_t head, int64_t query_head, void* workspace) {
              amx::attention_backward({.shape = shape,
                                       .q = head_rows<const bf16>(in.q, sequence, query_head),
                                       .k = head_rows<const bf16>(in.k, sequence, head),
                                       .v = head_rows<const bf16>(in.v, sequence, head),
                                       .out = head_rows<const bf16>(in.out, sequence, query_head),
                                       .dout = head_rows<const bf16>(in.dout, sequence, query_head),
                                       .lse = head_rows<const float>(in.lse, sequence, query_head),
                                       .dq = head_rows<bf16>(into.dq, sequence, query_head),
                                       .dk = head_rows<bf16>(into.dk, sequence, head),
                                       .dv = head_rows<bf16>(into.dv, sequence, head)},
                                      workspace);
            });
}

}  // namespace picotron
