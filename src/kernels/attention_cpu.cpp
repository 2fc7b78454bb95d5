// The walk over sequences and heads; see attention_cpu.h.
#include "kernels/attention_cpu.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <vector>

#include "kernels/attention_heads.h"
#include "kernels/fused_call.h"

namespace picotron {
namespace {

using cpu::AttentionBuffers, cpu::AttentionShape;

int64_t whole_vectors(int64_t elements) {
  constexpr int64_t kWidest = 16;  // elements of a vector, in any instruction set
  return (elements + kWidest - 1) / kWidest * kWidest;
}

template <class S>
const cpu::AttentionKernels<S>& typed(const cpu::Kernels& kernels) {
  if constexpr (std::is_same_v<S, cpu::bf16>)
    return kernels.attention_bf16;
  else if constexpr (std::is_same_v<S, float>)
    return kernels.attention_float;
  else
    return kernels.attention_double;
}

AttentionShape shape_of(const at::Tensor& q, const at::Tensor& k, bool causal, double scale) {
  return {.heads = q.size(1) / k.size(1),
          .queries = q.size(2),
          .keys = k.size(2),
          .dim = q.size(3),
          .keys_row = whole_vectors(k.size(2)),
          .dim_row = whole_vectors(q.size(3)),
          .causal = causal,
          .scale = scale};
}

// One thread's room for all its heads; ATen aligns it as vectors want it.
template <class C>
class Workspace {
 public:
  Workspace(const AttentionShape& s, bool backward) {
    const int64_t of_keys = s.keys * s.dim_row, transposed = s.dim * s.keys_row;
    const int64_t of_queries = cpu::kAttentionRows * s.dim_row;
    const int64_t scores = cpu::kAttentionRows * s.keys_row;
    buffers.k = take(of_keys);
    buffers.k_transposed = take(transposed);
    buffers.q = take(of_queries);
    buffers.p = take(scores);
    buffers.result = take(of_queries);
    if (backward) {
      buffers.v_transposed = take(transposed);
      buffers.dk = take(of_keys);
      buffers.dv = take(of_keys);
      buffers.dout = take(of_queries);
      buffers.ds = take(scores);
    } else {
      buffers.v = take(of_keys);
    }
  }
  AttentionBuffers<C> buffers{};

 private:
  C* take(int64_t elements) {
    memory_.push_back(at::empty({elements}, at::CppTypeToScalarType<C>::value));
    return static_cast<C*>(memory_.back().data_ptr());
  }
  std::vector<at::Tensor> memory_;
};

// Calls task(sequence, head, buffers) for each key/value head of each sequence.
template <class C, class F>
void for_heads(const at::Tensor& k, const AttentionShape& shape, bool backward, F task) {
  at::parallel_for(0, k.size(0) * k.size(1), 1, [&](int64_t begin, int64_t end) {
    const Workspace<C> workspace(shape, backward);
    for (int64_t i = begin; i < end; ++i) task(i / k.size(1), i % k.size(1), workspace.buffers);
  });
}

}  // namespace

AttentionOutput attention_cpu(const at::Tensor& q_view, const at::Tensor& k_view,
                              const at::Tensor& v_view, bool causal, double scale,
                              const cpu::Kernels& kernels) {
  const at::Tensor q = whole_rows(q_view), k = whole_rows(k_view), v = whole_rows(v_view);
  const AttentionShape shape = shape_of(q, k, causal, scale);
  const at::TensorOptions statistics = q.options().dtype(statistic_dtype(q));
  const AttentionOutput result = {empty_like_rows(q), at::empty(q.sizes().slice(0, 3), statistics)};
  with_storage_type(q, [&]<class S>(S) {
    using C = fused::Statistic<S>;
    for_heads<C>(k, shape, /*backward=*/false,
                 [&](int64_t sequence, int64_t head, const auto& buffers) {
                   const int64_t query_head = head * shape.heads;
                   typed<S>(kernels).forward({.shape = shape,
                                              .q = head_rows<const S>(q, sequence, query_head),
                                              .k = head_rows<const S>(k, sequence, head),
                                              .v = head_rows<const S>(v, sequence, head),
                                              .out = head_rows<S>(result.out, sequence, query_head),
                                              .lse = head_rows<C>(result.lse, sequence, query_head),
                                              .buffers = buffers});
                 });
  });
  return result;
}

void attention_cpu_backward(const AttentionGradients& into, const at::Tensor& dout,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const AttentionOutput& saved, bool causal, double scale,
                            const cpu::Kernels& kernels) {
  const BackwardInputs in = backward_inputs(into, dout, q, k, v, saved);
  const AttentionShape shape = shape_of(q, k, causal, scale);
  with_storage_type(q, [&]<class S>(S) {
    using C = fused::Statistic<S>;
    for_heads<C>(
        k, shape, /*backward=*/true, [&](int64_t sequence, int64_t head, const auto& buffers) {
          const int64_t query_head = head * shape.heads;
          typed<S>(kernels).backward({.shape = shape,
                                      .q = head_rows<const S>(in.q, sequence, query_head),
                                      .k = head_rows<const S>(in.k, sequence, head),
                                      .v = head_rows<const S>(in.v, sequence, head),
                                      .out = head_rows<const S>(in.out, sequence, query_head),
                                      .dout = head_rows<const S>(in.dout, sequence, query_head),
                                      .lse = head_rows<const C>(in.lse, sequence, query_head),
                                      .dq = head_rows<S>(into.dq, sequence, query_head),
                                      .dk = head_rows<S>(into.dk, sequence, head),
                                      .dv = head_rows<S>(into.dv, sequence, head),
                                      .buffers = buffers});
        });
  });
}

}  // namespace picotron
