// Internal to attention*.cpp: from tensors to the rows of their heads.
#pragma once
#include <ATen/ATen.h>

#include "core/error.h"
#include "kernels/attention.h"
#include "kernels/fused_dispatch.h"

namespace picotron {

// The rows of a sequence's heads from `head` on.
template <class T>
cpu::HeadRows<T> head_rows(const at::Tensor& x, int64_t sequence, int64_t head) {
  T* data = static_cast<T*>(x.data_ptr());
  return {data + sequence * x.stride(0) + head * x.stride(1), x.stride(1), x.stride(2)};
}

// x, or a copy of it, with a head's row in one piece.
inline at::Tensor whole_rows(const at::Tensor& x) {
  return x.stride(3) == 1 ? x : x.contiguous();
}

// [batch, heads, seq, head_dim], in memory [batch, seq, heads, head_dim].
inline at::Tensor empty_like_rows(const at::Tensor& x) {
  return at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
}

// What a backward reads, in whole rows.
struct BackwardInputs {
  at::Tensor dout, q, k, v, out, lse;
};

// Throws BrokenInvariant where the gradients do not fit their tensors.
inline BackwardInputs backward_inputs(const AttentionGradients& into, const at::Tensor& dout,
                                      const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const AttentionOutput& saved) {
  const BackwardInputs in = {whole_rows(dout), whole_rows(q),         whole_rows(k),
                             whole_rows(v),    whole_rows(saved.out), saved.lse};
  const auto fits = [](const at::Tensor& one, const at::Tensor& other) {
    return one.sizes() == other.sizes() && one.scalar_type() == other.scalar_type() &&
           one.stride(3) == 1;
  };
  check(fits(into.dq, in.q) && fits(into.dk, in.k) && fits(into.dv, in.v) && fits(in.dout, in.q) &&
            fits(in.out, in.q) && in.lse.scalar_type() == statistic_dtype(q),
        "attention's backward: gradients are of their tensors' shape and dtype");
  return in;
}

}  // namespace picotron
