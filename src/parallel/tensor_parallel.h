// Tensor parallel: a linear layer y = x wᵀ cut over the ranks of tp (Shoeybi et al. 2019,
// "Megatron-LM").
//
//     column-parallel   w's rows, the outputs, are cut       x ──▶ [ x w₀ᵀ | x w₁ᵀ ]
//                       fwd: identity                        bwd: all-reduce dx
//     row-parallel      w's columns, the inputs, are cut     [ x₀ | x₁ ] ──▶ x₀ w₀ᵀ + x₁ w₁ᵀ
//                       fwd: all-reduce y                    bwd: identity
//
// A column-parallel layer followed by a row-parallel one (q,k,v → o; gate,up → down) needs one
// collective forward and one backward. The sum of dx is started before the weight gradient and
// awaited after it, so that the network works while the processor multiplies.
//
// Sequence parallel (Korthikanti et al. 2022): between such pairs each rank keeps 1/tp of the
// tokens, for norms and residual. all-reduce = reduce-scatter + all-gather, so the wire carries the
// same forward; backward the layer gathers its input's tokens once more.
//
//     [tokens/tp] norm ─ all-gather ▶ column ▶ attention, MLP ▶ row ─ reduce-scatter ▶ [tokens/tp]
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "dist/mesh.h"
#include "kernels/norm.h"
#include "parallel/data_parallel.h"
#include "parallel/parameter.h"

namespace picotron {

// A tensor that a collective is still filling.
struct [[nodiscard]] Pending {
  at::Tensor tensor;
  Work work;
  at::Tensor wait() { return work.wait(), tensor; }
};

// How layers are cut: over which ranks, and whether the tokens between them are too.
struct TensorParallel {
  const Group* group = nullptr;
  const Group* key_value = nullptr;  // the ranks of it that hold the same key/value head
  bool sequence_parallel = false;

  TensorParallel() = default;
  TensorParallel(const Mesh& mesh, bool cut_tokens = false)  // `mesh` outlives it
      : group(&mesh.tp), key_value(&mesh.key_value), sequence_parallel(cut_tokens) {}
  // Below, `tokens/sp` is tokens, or, under sequence parallel, my part of them.
  // x [tokens/sp, n] → [tokens, n].  identity, or all-gather
  Pending gather(const at::Tensor& x, At at = At::current()) const;
  // x [tokens, n] partial(tp), overwritten → the sum [tokens/sp, n].  all-reduce or reduce-scatter
  Pending reduce(const at::Tensor& x, At at = At::current()) const;
  // Over which ranks the gradient is partial of what sees tokens/sp: see Parameter.
  const Group* partial() const { return sequence_parallel ? group : nullptr; }
};

// One output of a column-parallel layer: q_proj of [q_proj, k_proj, v_proj].
struct Output {
  std::string name;        // "q_proj"
  int64_t size = 0;        // rows of the whole weight
  bool key_value = false;  // heads that may be fewer than ranks: then neighbours hold the same one
};

struct ColumnParallelLinear {
  Weight* weight = nullptr;  // [Σ out/tp, in]: outputs side by side, so that one product serves all
  Weight* bias = nullptr;    // [Σ out/tp], or null
  TensorParallel tp = {};

  // Declares `prefix` + name + ".weight" (and ".bias") of every output.
  static ColumnParallelLinear declare(Parameters& parameters, const std::string& prefix,
                                      const std::vector<Output>& outputs, int64_t in, bool has_bias,
                                      const TensorParallel& tp);
  // x [tokens/sp, in] → [tokens, Σ out/tp].  fwd: gather(tp)
  at::Tensor forward(const at::Tensor& x) const;
  // dy [tokens, Σ out/tp] → dx [tokens/sp, in].  bwd: reduce(tp)
  at::Tensor backward(const at::Tensor& dy, const at::Tensor& x, Gradients& gradients) const;
};

struct RowParallelLinear {
  Weight* weight = nullptr;  // [out, in/tp]
  Weight* bias = nullptr;    // [out], whole on every rank and added once, or null
  TensorParallel tp = {};

  static RowParallelLinear declare(Parameters& parameters, const std::string& name, int64_t out,
                                   int64_t in, bool has_bias, const TensorParallel& tp);
  // x [tokens, in/tp] → [tokens/sp, out].  fwd: reduce(tp)
  at::Tensor forward(const at::Tensor& x) const;
  // dy [tokens/sp, out] → dx [tokens, in/tp].  bwd: gather(tp)
  at::Tensor backward(const at::Tensor& dy, const at::Tensor& x, Gradients& gradients) const;
};

// RMSNorm, whole on every rank of tp: all compute the same, or each its tokens (kernels/norm.h).
struct Norm {
  Weight* weight = nullptr;  // [hidden]
  double eps = 0;
  Body body = Body::fused;

  static Norm declare(Parameters& parameters, const std::string& name, int64_t hidden, double eps,
                      Body body, const TensorParallel& tp);
  // x + delta, or x where delta is undefined, then the norm. All [tokens/sp, hidden].
  AddNormOutput forward(const at::Tensor& x, const at::Tensor& delta) const;
  // `out` of forward. dy → gradient of the norm's input, plus residual_gradient where defined.
  at::Tensor backward(const at::Tensor& dy, const AddNormOutput& out,
                      const at::Tensor& residual_gradient, Gradients& gradients) const;
};

// The part of [0, size) of `dim` that is mine among the ranks of tp, uneven as torch.tensor_split
// where it must be.
Shard shard_of(int64_t dim, int64_t size, const Group& tp);

}  // namespace picotron
