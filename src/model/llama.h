// Llama (Touvron et al. 2023), the part of it that lives on this rank. Forward and backward are
// written out, layer by layer; where a collective stands in either, one reads it in
// parallel/tensor_parallel.cpp and vocab_parallel.cpp.
//
//     ids ─▶ embedding ─▶ x                             first stage; sum over tp
//     layer:   n1  = rms_norm(x)                        tokens/sp: cut under sequence parallel
//              qkv = n1 · [Wq; Wk; Wv]ᵀ                 column-parallel: heads are cut over tp
//              a   = attention(rope(q), rope(k), v)     whole heads; a ring over cp
//              x   = x + a · Woᵀ                        row-parallel: sum over tp
//              n2  = rms_norm(x)
//              gu  = n2 · [Wgate; Wup]ᵀ                 column-parallel
//              x   = x + (silu(gate) ∘ up) · Wdownᵀ     row-parallel: sum over tp
//     x ─▶ rms_norm ─▶ head and cross-entropy           last stage; in chunks of tokens
//
// The residual stream is carried as x + delta, not yet added: each addition is fused with the norm
// that follows it. The judge is `transformers`' LlamaForCausalLM (tests/parity).
#pragma once
#include <memory>
#include <vector>

#include "dist/mesh.h"
#include "kernels/rope.h"
#include "model/architectures.h"
#include "parallel/context_parallel.h"
#include "parallel/parameter.h"
#include "parallel/pipeline_parallel.h"
#include "parallel/tensor_parallel.h"
#include "parallel/vocab_parallel.h"

namespace picotron {

// What a layer keeps between forward and backward. [tokens, …] of this rank; norms [tokens/sp, …].
struct LayerSaved {
  AddNormOutput input;        // the stream before the layer, normed, and its statistics
  at::Tensor qkv;             // rotated [(heads + 2 kv heads)/tp · head_dim]
  AttentionOutput attention;  // out and lse
  AddNormOutput mid;          // the stream between attention and MLP, normed, and its statistics
  at::Tensor gate_up, act;    // [2 · intermediate/tp], [intermediate/tp]
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
    std::vector<Range> chunks = {};  // layers of each chunk of this stage; empty: all, in one
    bool sequence_parallel = false;
    // What backward computes again: nothing; attention and SwiGLU; all of a layer but its input.
    Recompute recompute = Recompute::none;
  };
  // Declares and allocates this rank's parameters, all zero: model/initial_values.h or
  // checkpoint/huggingface.h fills them. `mesh`, made for this architecture's key/value heads,
  // outlives the model.
  Llama(const LlamaConfig& config, const Mesh& mesh, const Options& options);

  at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                     std::unique_ptr<Saved>& saved) override;
  at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                      std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                      Gradients& gradients) override;
  at::Tensor evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                      const at::Tensor& loss) override;
  at::Tensor empty_input(const TokenBatch& batch) const override;
  void set_recompute(Recompute recompute) { recompute_ = recompute; }  // of forwards to come

  // The stream before the head, nothing kept: [tokens/sp, hidden]. Of a model in one stage.
  at::Tensor normed_states(const TokenBatch& batch) { return chunk_forward(0, batch, {}, nullptr); }
  const VocabParallelHead& head() const { return head_; }

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  const LlamaConfig& config() const { return config_; }
  int64_t max_positions() const { return rope_.cos.size(0); }

 private:
  struct Layer {
    Norm input_norm;
    ColumnParallelLinear qkv_proj;
    RowParallelLinear o_proj;
    Norm post_attention_norm;
    ColumnParallelLinear gate_up_proj;
    RowParallelLinear down_proj;
  };
  Layer declare_layer(int64_t index);
  bool begins_with_ids(int chunk) const { return mesh_.is_first_stage() && chunk == 0; }
  bool ends_with_loss(int chunk) const {
    return mesh_.is_last_stage() && chunk + 1 == ssize(chunks_);
  }
  // The chunk's input or the ids → its output or the last norm's. `kept` null: for no backward.
  at::Tensor chunk_forward(int chunk, const TokenBatch& batch, const at::Tensor& input,
                           LlamaSaved* kept);
  // The stream is x + delta; delta may be undefined. As far as saved.act: down_proj is left.
  void layer_forward(const Layer& layer, const TokenBatch& batch, const at::Tensor& x,
                     const at::Tensor& delta, LayerSaved& saved);
  // dx: gradient of the stream after the layer → of the stream before it.
  at::Tensor layer_backward(const Layer& layer, const TokenBatch& batch, const at::Tensor& dx,
                            LayerSaved& saved, Gradients& gradients);
  void rotate(const at::Tensor& qkv, const TokenBatch& batch, bool inverse) const;

  LlamaConfig config_;
  const Mesh& mesh_;
  TensorParallel tp_;
  Body body_;
  Recompute recompute_;
  Parameters parameters_;
  RopeTables rope_;
  FusedAttention attention_;
  std::vector<std::vector<Layer>> chunks_;
  VocabParallelEmbedding embedding_;  // on the first stage
  Norm final_norm_;                   // on the last
  VocabParallelHead head_;
};

}  // namespace picotron
