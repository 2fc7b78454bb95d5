// Llama (Touvron et al. 2023), the part of it that lives on this rank. Forward and backward are
// written out, layer by layer; where a collective stands in either, one reads it in
// parallel/tensor_parallel.cpp and vocab_parallel.cpp.
//
//     ids ─▶ embedding ─▶ x                             all-reduce(tp)
//     layer:   n1  = rms_norm(x)
//              qkv = n1 · [Wq; Wk; Wv]ᵀ                 column-parallel: heads are cut over tp
//              a   = attention(rope(q), rope(k), v)     whole heads: no communication in tp
//              x   = x + a · Woᵀ                        row-parallel: all-reduce(tp)
//              n2  = rms_norm(x)
//              gu  = n2 · [Wgate; Wup]ᵀ                 column-parallel
//              x   = x + (silu(gate) ∘ up) · Wdownᵀ     row-parallel: all-reduce(tp)
//     x ─▶ rms_norm ─▶ head and cross-entropy           in chunks of tokens
//
// The residual stream is carried as x + delta, not yet added: each addition is fused with the norm
// that follows it. Heads are those of `transformers`' LlamaForCausalLM, whose logits and gradients
// are the test (tests/parity).
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "dist/mesh.h"
#include "kernels/attention.h"
#include "kernels/rope.h"
#include "model/architectures.h"
#include "parallel/parameter.h"
#include "parallel/pipeline_parallel.h"
#include "parallel/tensor_parallel.h"
#include "parallel/vocab_parallel.h"

namespace picotron {

// What one layer keeps between forward and backward. [tokens, …], shapes of this rank.
struct LayerSaved {
  at::Tensor x, rstd1, n1;    // the input [hidden], its norm's statistics [1], normed [hidden]
  at::Tensor qkv;             // rotated [(heads + 2 kv heads) · head_dim]
  AttentionOutput attention;  // out and lse
  at::Tensor mid, rstd2, n2;  // the stream between attention and MLP [hidden], and its norm
  at::Tensor gate_up, act;    // [2 · intermediate], [intermediate]
};

struct LlamaSaved : Saved {
  std::vector<LayerSaved> layers;
  AddNormOutput final;  // of the last norm, on the last stage
};

class Llama : public Stage {
 public:
  struct Options {
    at::TensorOptions tensors = {};  // dtype and device of the computation
    int64_t max_positions = 0;       // seq_length: RoPE tables reach so far
    Body body = Body::fused;
  };
  // Declares and allocates this rank's parameters, all zero: model/initial_values.h or
  // checkpoint/huggingface.h fills them. `mesh` outlives the model. UserError where tp_size does
  // not fit the heads.
  Llama(const LlamaConfig& config, const Mesh& mesh, const Options& options);

  at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                     std::unique_ptr<Saved>& saved) override;
  at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                      std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                      Gradients& gradients) override;

  at::Tensor evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                      const at::Tensor& loss) override;
  at::Tensor empty_input(const TokenBatch& batch) const override;
  // Σ of the tokens' losses, 0-dim, without keeping anything: validation.
  at::Tensor evaluate(const TokenBatch& batch);
  // Logits of the last position of each row: [rows, vocab/tp]. For generation.
  at::Tensor next_token_logits(const TokenBatch& batch);
  // Logits of every position: [tokens, vocab/tp]. For comparisons; the full matrix exists.
  at::Tensor logits(const TokenBatch& batch);

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  const LlamaConfig& config() const { return config_; }
  int64_t max_positions() const { return rope_.cos.size(0); }

 private:
  struct Layer {
    Norm input_norm, post_attention_norm;
    ColumnParallelLinear qkv_proj, gate_up_proj;
    RowParallelLinear o_proj, down_proj;
  };
  // The stream is x + delta. Updates both; delta is undefined before the first layer.
  void layer_forward(const Layer& layer, const TokenBatch& batch, at::Tensor& x, at::Tensor& delta,
                     LayerSaved& saved);
  // dx: gradient of the stream after the layer → of the stream before it.
  at::Tensor layer_backward(const Layer& layer, const TokenBatch& batch, const at::Tensor& dx,
                            LayerSaved& saved, Gradients& gradients);
  // The heads of a fused [tokens, (heads + 2 kv heads) · head_dim] product, as views
  // [rows, heads, columns, head_dim].
  struct Heads {
    at::Tensor q, k, v;
  };
  Heads split_heads(const at::Tensor& qkv, const TokenBatch& batch) const;
  at::Tensor hidden_states(const TokenBatch& batch);  // after the final norm, nothing kept

  LlamaConfig config_;
  Body body_;
  int64_t heads_, key_value_heads_;  // on this rank
  Parameters parameters_;
  RopeTables rope_;
  VocabParallelEmbedding embedding_;
  std::vector<Layer> layers_;
  Norm final_norm_;
  VocabParallelHead head_;
};

}  // namespace picotron
