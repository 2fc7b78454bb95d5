// Tensor parallel: a linear layer y = x wᵀ cut over the ranks of tp (Shoeybi et al. 2019,
// "Megatron-LM").
//
//     column-parallel   w's rows, the outputs, are cut       x ──▶ [ x w₀ᵀ | x w₁ᵀ ]
//                       fwd: identity                        bwd: all-reduce dx
//     row-parallel      w's columns, the inputs, are cut     [ x₀ | x₁ ] ──▶ x₀ w₀ᵀ + x₁ w₁ᵀ
//                       fwd: all-reduce y                    bwd: identity
//
// A column-parallel layer followed by a row-parallel one (q,k,v → o; gate,up → down) needs one
// collective forward and one backward. The all-reduce of dx is started before the weight gradient
// and awaited after it, so that the network works while the processor multiplies. A group of size 1
// makes each collective a no-op.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "dist/mesh.h"
#include "kernels/norm.h"
#include "parallel/data_parallel.h"
#include "parallel/parameter.h"

namespace picotron {

// One output of a column-parallel layer: q_proj of [q_proj, k_proj, v_proj].
struct Output {
  std::string name;  // "q_proj"
  int64_t size = 0;  // rows of the whole weight
};

struct ColumnParallelLinear {
  Weight* weight = nullptr;  // [Σ out/tp, in]: outputs side by side, so that one product serves all
  Weight* bias = nullptr;    // [Σ out/tp], or null
  const Group* tp = nullptr;

  // Declares `prefix` + name + ".weight" (and ".bias") of every output. `tp` outlives the layer.
  static ColumnParallelLinear declare(Parameters& parameters, const std::string& prefix,
                                      const std::vector<Output>& outputs, int64_t in, bool has_bias,
                                      const Group& tp);
  // x [tokens, in] → [tokens, Σ out/tp].  fwd: identity(tp)
  at::Tensor forward(const at::Tensor& x) const;
  // dy [tokens, Σ out/tp] → dx [tokens, in].  bwd: all-reduce(tp)
  at::Tensor backward(const at::Tensor& dy, const at::Tensor& x, Gradients& gradients) const;
};

struct RowParallelLinear {
  Weight* weight = nullptr;  // [out, in/tp]
  Weight* bias = nullptr;    // [out], whole on every rank and added once, or null
  const Group* tp = nullptr;

  static RowParallelLinear declare(Parameters& parameters, const std::string& name, int64_t out,
                                   int64_t in, bool has_bias, const Group& tp);
  // x [tokens, in/tp] → [tokens, out].  fwd: all-reduce(tp)
  at::Tensor forward(const at::Tensor& x) const;
  // dy [tokens, out] → dx [tokens, in/tp].  bwd: identity(tp)
  at::Tensor backward(const at::Tensor& dy, const at::Tensor& x, Gradients& gradients) const;
};

// RMSNorm, whole on every rank of tp: all compute the same (kernels/norm.h).
struct Norm {
  Weight* weight = nullptr;  // [hidden]
  double eps = 0;
  Body body = Body::fused;

  static Norm declare(Parameters& parameters, const std::string& name, int64_t hidden, double eps,
                      Body body, const Group& tp);
  // x + delta, or x where delta is undefined, then the norm. All [tokens, hidden].
  AddNormOutput forward(const at::Tensor& x, const at::Tensor& delta) const;
  // dy → gradient of the norm's input x, plus residual_gradient where that is defined.
  at::Tensor backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& rstd,
                      const at::Tensor& residual_gradient, Gradients& gradients) const;
};

// The part of [0, size) of `dim` that is mine among the ranks of tp, uneven as torch.tensor_split
// where it must be.
Shard shard_of(int64_t dim, int64_t size, const Group& tp);

}  // namespace picotron
